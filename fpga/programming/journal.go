package programming

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

// Where things stand in the directory.
const (
	journalName = "journal.json"
	lockName    = "lock"
	partsDir    = "parts"

	journalFormat = 1
)

// entry names the parts of a package by their digests.
type entry struct {
	Manifest atelier.Digest `json:"manifest"`
	Image    atelier.Digest `json:"image"`
	Model    atelier.Digest `json:"model"`
}

// journal is what must survive: what the device runs, what it can go back to, and whether
// it was about to become something else.
type journal struct {
	Golden   entry  `json:"golden"`
	Current  *entry `json:"current,omitempty"`
	LastGood *entry `json:"last_good,omitempty"`
	// Intent is what was to be programmed. Where there is one, nobody knows what the device
	// holds.
	Intent     *entry       `json:"intent,omitempty"`
	Quarantine *atelier.Why `json:"quarantine,omitempty"`
	Loads      int          `json:"loads"`
	Rollbacks  int          `json:"rollbacks"`
	Passed     time.Time    `json:"passed,omitzero"` // the last golden inputs
}

// disk keeps the journal and the parts that it names.
type disk struct {
	fs  durable.FS
	dir string
}

func (d disk) read() (journal, error) {
	var j journal
	b, err := durable.ReadFile(d.fs, filepath.Join(d.dir, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return j, err
	}
	return j, durable.Decode(b, journalName, journalFormat, &j)
}

func (d disk) write(j journal) error {
	b, err := durable.Encode(journalFormat, j)
	if err != nil {
		return err
	}
	return durable.WriteFile(d.fs, filepath.Join(d.dir, journalName), b, 0o600)
}

func (d disk) part(digest atelier.Digest) string {
	return filepath.Join(d.dir, partsDir, digest.Hex())
}

// keep writes the parts of a package that are not there yet.
func (d disk) keep(p Package) (entry, error) {
	if err := durable.MkdirAll(d.fs, filepath.Join(d.dir, partsDir), 0o700); err != nil {
		return entry{}, err
	}
	e := p.entry()
	for digest, b := range map[atelier.Digest][]byte{e.Manifest: p.Manifest, e.Image: p.Image, e.Model: p.Model} {
		if held, err := durable.ReadFile(d.fs, d.part(digest)); err == nil && bytes.Equal(held, b) {
			continue
		}
		if err := durable.WriteFile(d.fs, d.part(digest), b, 0o600); err != nil {
			return entry{}, err
		}
	}
	return e, nil
}

// load returns a package that was kept. Its parts are what their digests say.
func (d disk) load(e entry) (Package, error) {
	var p Package
	for digest, to := range map[atelier.Digest]*[]byte{e.Manifest: &p.Manifest, e.Image: &p.Image, e.Model: &p.Model} {
		b, err := durable.ReadFile(d.fs, d.part(digest))
		if err != nil {
			return p, err
		}
		if atelier.DigestOf(b) != digest {
			return p, atelier.Errorf(atelier.Corrupt, "the part %s on the disk is damaged", digest.Short())
		}
		*to = b
	}
	return p, nil
}

// forget removes the parts that the journal does not name.
func (d disk) forget(j journal) error {
	named := map[string]bool{}
	for _, e := range []*entry{&j.Golden, j.Current, j.LastGood, j.Intent} {
		if e != nil {
			named[e.Manifest.Hex()], named[e.Image.Hex()], named[e.Model.Hex()] = true, true, true
		}
	}
	files, err := d.fs.ReadDir(filepath.Join(d.dir, partsDir))
	if err != nil {
		return err
	}
	for _, f := range files {
		if !named[f.Name()] {
			err = errors.Join(err, durable.Remove(d.fs, filepath.Join(d.dir, partsDir, f.Name())))
		}
	}
	return err
}

// lock takes the device for this process, until the file is closed or the process ends.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, durable.Explain(err, "open the lock of the FPGA")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // it was not locked
		return nil, busy()
	}
	return f, nil
}

// unlock gives the device back at once, also where a process that is just being started
// has inherited the file.
func unlock(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

func busy() error {
	return atelier.Errorf(atelier.InUse, "the FPGA is being programmed, or another program holds it").
		WithRemedy("Try again when that is done; a device takes one model at a time.")
}
