package atelier

import "strconv"

// Flags returns how atelier-serve is told of s; see docs/architecture.md.
func (s ServingSettings) Flags() []string {
	var flags []string
	count := func(flag string, n int64) {
		if n > 0 {
			flags = append(flags, flag, strconv.FormatInt(n, 10))
		}
	}
	duration := func(flag string, ms float64) {
		if ms > 0 {
			flags = append(flags, flag, Millis(ms).String())
		}
	}
	count("--max-batch", int64(s.MaxBatch))
	duration("--max-delay", s.MaxDelay)
	count("--threads", int64(s.Threads))
	count("--concurrency", int64(s.Concurrency))
	count("--workers", int64(s.Workers))
	count("--worker-memory", s.WorkerMemory)
	duration("--deadline", s.Deadline)
	if s.Providers != "" {
		flags = append(flags, "--providers", s.Providers)
	}
	return flags
}
