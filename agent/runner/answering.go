package runner

// Answering returns the socket, by deployment, of each module that serves.
func (r *Runner) Answering() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	sockets := map[string]string{}
	for deployment, record := range r.slots.Modules {
		if c := record.Current; c != nil {
			if i := r.instances[c.Module.Rollout]; i != nil && i.isReady() {
				sockets[deployment] = r.socket(c.Module.Rollout)
			}
		}
	}
	return sockets
}
