package registry

import (
	"errors"
	"path"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/onnx"
)

// readONNX reads the signature out of the entry, and checks that the files which
// hold its weights are among files, and long enough.
func (r *Registry) readONNX(entry atelier.File, files []atelier.File) (s *atelier.Signature, err error) {
	b, err := r.open(entry.Digest)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	m, err := onnx.Read(b, b.Size())
	if code := atelier.CodeOf(err); code == atelier.Invalid || code == atelier.TooLarge {
		return nil, atelier.Errorf(atelier.Invalid, "file %q: %s", entry.Path, err).WithField("entry").
			WithRemedy("Register the .onnx file as the exporter wrote it; check it with onnx.checker.")
	}
	if err != nil {
		return nil, err
	}
	sizes := make(map[string]int64, len(files))
	for _, f := range files {
		sizes[f.Path] = f.Size
	}
	for _, e := range m.External {
		if err := atelier.CheckFilePath(e.Path); err != nil {
			return nil, atelier.Errorf(atelier.Invalid, "file %q keeps weights outside of its own directory: %s", entry.Path, err).WithField("entry").
				WithRemedy("Export the model with its weights beside it.")
		}
		at := path.Join(parent(entry.Path), e.Path)
		size, there := sizes[at]
		if !there {
			return nil, atelier.Errorf(atelier.Invalid, "file %q keeps weights in %q, which is not among the files", entry.Path, at).WithField("files").
				WithRemedy("Register it together with the files that hold its weights.")
		}
		if size < e.Size {
			return nil, atelier.Errorf(atelier.Invalid, "file %q has %d bytes, and %q looks for weights up to byte %d of it", at, size, entry.Path, e.Size).
				WithField("files").WithRemedy("Check that the file is whole and belongs to this model.")
		}
	}
	return m.Signature(), nil
}
