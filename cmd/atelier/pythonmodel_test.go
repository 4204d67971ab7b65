package main

import (
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func TestDetect(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		given client.NewVersion
		files []string
		kind  string
		entry string
	}{
		"ONNX":                    {files: []string{"m.onnx"}},
		"MLflow":                  {files: []string{"MLmodel", "model.pkl", "requirements.txt"}, kind: atelier.VariantMLflow},
		"MLflow with ONNX":        {files: []string{"MLmodel", "model.onnx"}},
		"MLflow by word":          {given: client.NewVersion{Kind: atelier.VariantMLflow}, files: []string{"MLmodel", "model.onnx"}, kind: atelier.VariantMLflow},
		"MLflow further down":     {files: []string{"a/MLmodel"}},
		"joblib":                  {files: []string{"iris.joblib", "requirements.txt"}, kind: atelier.VariantPickle, entry: "iris.joblib"},
		"two pickles":             {files: []string{"a.pkl", "b.pickle"}},
		"two pickles, one named":  {given: client.NewVersion{Kind: atelier.VariantPickle, Entry: "b.pickle"}, files: []string{"a.pkl", "b.pickle"}, kind: atelier.VariantPickle, entry: "b.pickle"},
		"a script with a pickle":  {given: client.NewVersion{Kind: atelier.VariantPython, Entry: "score.py"}, files: []string{"score.py", "a.pkl"}, kind: atelier.VariantPython, entry: "score.py"},
		"an entry without a kind": {given: client.NewVersion{Entry: "m.bin"}, files: []string{"m.bin", "a.pkl"}, entry: "m.bin"},
	} {
		var files []localFile
		for _, path := range c.files {
			files = append(files, localFile{file: atelier.File{Path: path}})
		}
		v := c.given
		if detect(&v, files); v.Kind != c.kind || v.Entry != c.entry {
			t.Errorf("%s: kind %q, entry %q", name, v.Kind, v.Entry)
		}
	}
}

func TestPythonOf(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"python: 3.11.7\nbuild_dependencies:\n- pip==23.2.1\n": "3.11", "python: '3.12'\n": "3.12", "": "", "python: [": "", "dependencies: []": "",
	} {
		if got := pythonOf(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
