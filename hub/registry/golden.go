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
func (r *Registry) checkGolden(kind string, files []atelier.File) (err error) {
	at := slices.IndexFunc(files, func(f atelier.File) bool { return f.Path == atelier.GoldenPath })
	if at < 0 {
		return nil
	}
	b, err := r.open(files[at].Digest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	text, err := io.ReadAll(io.NewSectionReader(b, 0, min(b.Size(), atelier.MaxGoldenSize+1)))
	if err != nil {
		return err
	}
	golden, err := atelier.ParseGolden(text)
	if err != nil {
		return atelier.Errorf(atelier.CodeOf(err), "%w", err).WithField("files").
			WithRemedy("Record it anew with 'atelier model golden', or register the version without it.")
	}
	return golden.CheckFor(kind)
}
