package serving

import (
	"net/http"
	"strings"
)

// IndexEntry is a model in the answer to POST /v2/repository/index, as the model
// repository extension of Open Inference Protocol v2 has it (Triton's
// extension_model_repository.md), with the memory that it takes besides.
type IndexEntry struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	State   string `json:"state"`
	Reason  string `json:"reason"`
	// Memory is in bytes, 0 where it was not measured.
	Memory int64 `json:"memory_bytes,omitempty"`
}

// NewIndexEntry returns the entry of a model.
func NewIndexEntry(name, version string, ready bool, memory int64) IndexEntry {
	e := IndexEntry{Name: name, Version: version, State: "READY", Memory: memory}
	if !ready {
		e.State, e.Reason = "UNAVAILABLE", "it is not loaded yet"
	}
	return e
}

// SetIndex says which models the process serves, where there are more than this one;
// nil stands for this one.
func (h *Handler) SetIndex(list func() []IndexEntry) { h.index = list }

func (h *Handler) entries() []IndexEntry {
	if h.index != nil {
		return h.index()
	}
	m := h.model.Load()
	e := NewIndexEntry(h.name, h.version, m != nil, 0)
	if m != nil {
		e.Memory = m.Health.Memory
	}
	return []IndexEntry{e}
}

// repository answers POST /v2/repository/index: {"ready": true} asks for those alone that
// are ready.
func (h *Handler) repository(w http.ResponseWriter, r *http.Request) {
	body, free, err := h.body(w, r)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer free()
	var asked struct {
		Ready bool `json:"ready"`
	}
	if strings.TrimSpace(string(body)) != "" {
		if err := decodeJSON(body, &asked); err != nil {
			h.fail(w, r, err)
			return
		}
	}
	list := []IndexEntry{}
	for _, e := range h.entries() {
		if e.State == "READY" || !asked.Ready {
			list = append(list, e)
		}
	}
	h.write(w, http.StatusOK, list)
}
