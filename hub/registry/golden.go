package registry

import (
	"errors"
	"io"
	"slices"

	atelier "github.com/atelier-edge/atelier"
)

// checkGolden reads the version's golden inputs, where it has any, so that whoever
// registers it hears of a mistake and not each device. Whether the model passes them
// only a device can tell.
func (r *Registry) checkGolden(files []atelier.File) error {
	text, err := r.textOf(files, atelier.GoldenPath, atelier.MaxGoldenSize)
	if text == nil || err != nil {
		return err
	}
	if _, err := atelier.ParseGolden(text); err != nil {
		return atelier.Errorf(atelier.CodeOf(err), "%w", err).WithField("files").
			WithRemedy("Record it anew with 'atelier model golden', or register the version without it.")
	}
	return nil
}

// checkServing does the same with what the version says of its serving.
func (r *Registry) checkServing(files []atelier.File, kind string) error {
	text, err := r.textOf(files, atelier.ServingPath, atelier.MaxServingSize)
	if text == nil || err != nil {
		return err
	}
	if _, err := atelier.ParseServing(text, kind); err != nil {
		return atelier.Errorf(atelier.CodeOf(err), "%w", err).WithField("files").
			WithRemedy("Mend the file, or register the version without it.")
	}
	return nil
}

// textOf returns the content of the file of that path, nil where there is none, and
// of one that is larger than most one byte more than that.
func (r *Registry) textOf(files []atelier.File, path string, most int64) (text []byte, err error) {
	at := slices.IndexFunc(files, func(f atelier.File) bool { return f.Path == path })
	if at < 0 {
		return nil, nil
	}
	b, err := r.open(files[at].Digest)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return io.ReadAll(io.NewSectionReader(b, 0, min(b.Size(), most+1))) // never nil
}
