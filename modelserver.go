package atelier

// The agent loads models into a server of several by PUT /models/ID on the server's
// control socket, and unloads them by DELETE. These are the messages.

// ModelLoad asks a server of several models to load one: the arguments that atelier-serve
// would be started with for it, without those of the runtime.
type ModelLoad struct {
	Args []string `json:"args"`
}

// ModelFailure says why a model was not loaded: what atelier-serve would have ended with,
// its exit code and its last words.
type ModelFailure struct {
	Exit   int    `json:"exit"`
	Reason string `json:"reason"`
}

// ServedModel is a model in a server of several.
type ServedModel struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Ready   bool   `json:"ready"`
	Memory  int64  `json:"memory_bytes"` // see ModuleHealth
	Size    int64  `json:"size_bytes"`   // of the model's file
}

// LoadError says that a server of several models did not load one.
type LoadError struct{ ModelFailure }

// Error implements error.
func (e *LoadError) Error() string { return e.Reason }
