package runner

import (
	"slices"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/state"
)

func TestBases(t *testing.T) {
	t.Parallel()
	file := func(path, content string) atelier.File {
		return atelier.File{Path: path, Digest: atelier.DigestOf([]byte(content)), Size: int64(len(content))}
	}
	module := func(model, entry string, files ...atelier.File) *state.Slot {
		return &state.Slot{Module: atelier.Module{Model: atelier.ModuleModel{
			Name: model, Variant: atelier.Variant{Entry: entry, Files: files},
		}, Runtime: &atelier.ModuleRuntime{Files: []atelier.File{file("lib.so", "runtime")}}}}
	}
	slots := state.Slots{Modules: map[string]*state.Record{
		"a": {Current: module("stranger", "m.onnx", file("m.onnx", "strange"))},
		"b": {Current: module("digits", "other.onnx", file("other.onnx", "other"), file("words.txt", "other words"))},
		"c": {
			Current:  module("digits", "v2.onnx", file("v2.onnx", "two"), file("words.txt", "words two")),
			Previous: module("digits", "v1.onnx", file("v1.onnx", "one"), file("words.txt", "words")),
			Candidate: module("digits", "v3.onnx", file("v3.onnx", "three"), file("words.txt", "words three"),
				file("v3-words.txt", "more"), file("deep/v2.onnx", "moved"), file("large.txt", strings.Repeat("large", 100))),
		},
	}}
	r := &Runner{slots: slots}
	for name, in := range map[string]struct {
		file  atelier.File
		first []string
	}{
		"what the engine loads": {file("v3.onnx", "three"), []string{"two", "one", "other"}},
		"the same kind":         {atelier.File{Path: "v3-words.txt", Digest: atelier.DigestOf([]byte("more")), Size: 9}, []string{"words two", "words"}},
		"the same path":         {file("words.txt", "words three"), []string{"words two", "words", "other words"}},
	} {
		got := r.Bases(in.file)
		for i, content := range in.first {
			if i >= len(got) || got[i] != atelier.DigestOf([]byte(content)) {
				t.Errorf("%s: %q is not number %d of %v", name, content, i, got)
			}
		}
		if slices.Contains(got, in.file.Digest) || slices.Contains(got, atelier.DigestOf([]byte("strange"))) || len(got) > atelier.MaxResembling {
			t.Errorf("%s: %v", name, got)
		}
	}
	// What is of another kind or size is of no use, and a name alone is of some.
	if got, want := r.Bases(file("deep/v2.onnx", "moved")), atelier.DigestOf([]byte("two")); len(got) == 0 || got[0] != want {
		t.Errorf("bases of a file that lay in another directory: %v, expected was first %s", got, want)
	}
	if got := r.Bases(file("large.txt", strings.Repeat("large", 100))); len(got) != 0 {
		t.Errorf("bases of a file that is larger than all others: %v", got)
	}
	if got := r.Bases(file("x", "nobody's")); len(got) != 0 {
		t.Errorf("bases of what nobody needs: %v", got)
	}
}
