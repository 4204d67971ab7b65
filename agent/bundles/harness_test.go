package bundles

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/agent/fetch"
	"github.com/atelier-edge/atelier/agent/state"
	"github.com/atelier-edge/atelier/internal/bundle"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// island is a device that does not reach its hub.
type island struct {
	*testing.T
	hub      *agenttest.Authority
	device   string
	disk     *durabletest.Disk
	fs       durable.FS // the disk, or the system's
	dir      string     // in fs
	state    *state.Store
	content  *content.Store
	importer *Importer
	watched  string // directory
	told     int    // how often a new state was told of
}

func newIsland(t *testing.T) *island {
	t.Helper()
	i := &island{T: t, hub: agenttest.NewAuthority(t), device: atelier.NewID(), disk: durabletest.NewDisk(), watched: filepath.Join(t.TempDir(), "bundles")}
	i.fs, i.dir = i.disk, "/"
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	return i
}

// start opens everything anew, as an agent that starts.
func (i *island) start() (err error) {
	if i.state, err = state.Open(state.Options{
		FS: i.fs, Dir: filepath.Join(i.dir, "state"), Device: i.device, Workspace: i.hub.Workspace, Root: i.hub.Root(), Delegation: i.hub.Delegation(),
	}); err != nil {
		return err
	}
	if i.content, err = content.Open(i.fs, filepath.Join(i.dir, "content"), content.WithCheckpoint(64<<10, time.Hour)); err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	fetcher := fetch.New(i.content, nil, fetch.Options{Log: log, Holdings: func() []fetch.Holding { return nil }})
	i.importer = New(Options{
		Device: i.device, Workspace: i.hub.Workspace, State: i.state, Content: i.content, Fetcher: fetcher,
		Desired: func() { i.told++ }, Directory: i.watched, Keep: true, Log: log,
	})
	return nil
}

// parcel is a bundle in the making.
type parcel struct {
	config bundle.Config
	layers []bundle.Source
	sign   func(payloadType string, payload []byte) ([]byte, error)
}

// parcel makes a bundle with one state of generation for the device.
func (i *island) parcel(generation uint64, contents ...string) *parcel {
	i.Helper()
	d := atelier.DesiredState{Workspace: i.hub.Workspace, Device: i.device, Epoch: 1, Generation: generation}
	for n, c := range contents {
		d.Modules = append(d.Modules, agenttest.Module(string(rune('a'+n)), []byte(c)))
	}
	p := &parcel{config: bundle.Config{Workspace: i.hub.Workspace, WorkspaceName: "plant", Created: time.Now()}}
	p.sign = func(payloadType string, payload []byte) ([]byte, error) {
		return i.hub.Sign(i.T, payloadType, json.RawMessage(payload)), nil
	}
	p.add(i.T, d, i.hub)
	for _, c := range append(contents, "runtime") {
		p.content(c)
	}
	return p
}

func (p *parcel) add(t *testing.T, d atelier.DesiredState, by *agenttest.Authority) {
	layer := bundle.State(by.Desired(t, d))
	p.layers = append(p.layers, layer)
	p.config.Devices = append(p.config.Devices, bundle.Device{ID: d.Device, Name: "press", Position: d.Position(), State: layer.Digest})
}

func (p *parcel) content(text string) {
	f := atelier.File{Path: "file", Digest: atelier.DigestOf([]byte(text)), Size: int64(len(text))}
	p.config.Files = append(p.config.Files, bundle.File{File: f})
	p.layers = append(p.layers, bundle.Content(f, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }))
}

func (p *parcel) bytes(t *testing.T) []byte {
	t.Helper()
	layout, err := bundle.Build(p.config, p.layers, p.sign)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := layout.WriteTar(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (p *parcel) file(t *testing.T) string { return save(t, p.bytes(t)) }

func save(t *testing.T, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "bundle.tar")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// unpack writes a bundle as a directory.
func unpack(t *testing.T, raw []byte, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		var b []byte
		if err == nil {
			b, err = io.ReadAll(r)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, h.Name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// takes imports a bundle, which must work.
func (i *island) takes(path string) Imported {
	i.Helper()
	done, err := i.importer.Import(i.Context(), path)
	if err != nil {
		i.Fatal(err)
	}
	return done
}

// refuses imports a bundle, which must fail with the reason and change no state.
func (i *island) refuses(path string, want atelier.Reason) {
	i.Helper()
	before := i.state.Position()
	_, err := i.importer.Import(i.Context(), path)
	if why := bundle.WhyOf(err); err == nil || why.Reason() != want || why.Message() == "" || why.Remedy() == "" && want != atelier.ReasonSuperseded {
		i.Errorf("got %v: %s: %s (%s), want %s", err, why.Reason(), why.Message(), why.Remedy(), want)
	}
	if i.state.Position() != before {
		i.Error("the desired state changed all the same")
	}
}

func (i *island) has(text string) bool {
	i.Helper()
	d := atelier.DigestOf([]byte(text))
	has, err := i.content.Has(d)
	if err == nil && has {
		err = i.content.Verify(i.Context(), d)
	}
	if err != nil {
		i.Fatal(err)
	}
	return has
}
