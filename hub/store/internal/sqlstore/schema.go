package sqlstore

import (
	"bytes"
	"context"
	"embed"
	"io"
	"io/fs"
	"strings"

	"github.com/pressly/goose/v3"

	atelier "github.com/atelier-edge/atelier"
)

//go:embed schema/*.sql
var schemaFiles embed.FS

// migrate brings the database to the newest schema.
func migrate(ctx context.Context, e Engine) error {
	sub, err := fs.Sub(schemaFiles, "schema")
	if err != nil {
		return err
	}
	if e.Types != nil {
		sub = translated{sub, e.Types}
	}
	p, err := goose.NewProvider(e.Migrations, e.Writer, sub, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	has, err := p.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	if sources := p.ListSources(); has > sources[len(sources)-1].Version {
		return atelier.Errorf(atelier.Unsupported, "the database has schema %d, this hub knows schemas up to %d", has, sources[len(sources)-1].Version).
			WithRemedy("Run the newer hub that has used it, or restore the backup from before.")
	}
	_, err = p.Up(ctx)
	return err
}

// translated is the schema's files with SQLite's column types replaced by
// those of another engine, so that there is one schema.
type translated struct {
	fs.FS
	types *strings.Replacer
}

// Open returns the file, translated where it is a migration.
func (t translated) Open(name string) (fs.File, error) {
	f, err := t.FS.Open(name)
	if err != nil || !strings.HasSuffix(name, ".sql") {
		return f, err
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	return &translatedFile{f, bytes.NewReader([]byte(t.types.Replace(string(text))))}, nil
}

type translatedFile struct {
	fs.File
	text io.Reader
}

func (f *translatedFile) Read(b []byte) (int, error) { return f.text.Read(b) }
