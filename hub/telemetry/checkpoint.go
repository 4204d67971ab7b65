package telemetry

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

// A checkpoint is taken every checkpointEvery, and when the journal has grown to
// checkpointSize: it bounds how much is applied again when the hub starts.
const (
	checkpointEvery = 5 * time.Minute
	checkpointSize  = 16 << 20
	checkpointLook  = 5 * time.Second
)

const checkpointFormat = 1

// checkpointFile is what a checkpoint says: how far each stream is stored in the
// TSDB, durably, and the metrics' descriptions, which the TSDB does not keep.
type checkpointFile struct {
	Devices  map[string][]stream            `json:"devices"`
	Metadata map[string]map[string]Metadata `json:"metadata"`
}

func (s *Store) checkpointPath() string { return filepath.Join(s.cfg.Dir, "checkpoint.json") }

// recover reads the checkpoint and applies what the journal has since.
func (s *Store) recover() error {
	var file checkpointFile
	b, err := durable.ReadFile(s.cfg.FS, s.checkpointPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		err := durable.Decode(b, s.checkpointPath(), checkpointFormat, &file)
		if atelier.CodeOf(err) == atelier.Unsupported {
			return err
		}
		if err != nil {
			return atelier.Errorf(atelier.Corrupt, "cannot read %s: %w", s.checkpointPath(), err).
				WithRemedy("Restore it from a backup, or remove it: devices may then send some samples again.")
		}
	}
	for id, streams := range file.Devices {
		s.device(id).streams = streams
	}
	if file.Metadata != nil {
		s.metadata.workspaces = file.Metadata
	}
	s.journal, err = openJournal(s.cfg.FS, filepath.Join(s.cfg.Dir, "journal"), func(r *record) error {
		d := s.device(r.Device)
		if through, _ := d.through(r.Stream); r.Sequence <= through {
			return nil
		}
		return s.apply(d, r)
	})
	return err
}

func (s *Store) checkpointLoop(ctx context.Context) {
	tick := time.NewTicker(checkpointLook)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		size := s.journal.bytes()
		if size == 0 || size < checkpointSize && time.Since(last) < checkpointEvery {
			continue
		}
		last = time.Now()
		if err := s.checkpoint(); err != nil {
			s.cfg.Log.Error("cannot take a telemetry checkpoint; the journal grows until it succeeds", "error", err)
		}
	}
}

// checkpoint makes durable in the TSDB what the journal holds, and shortens the
// journal. A failure at any step leaves the older checkpoint and all that it needs.
func (s *Store) checkpoint() error {
	s.checkpointing.Lock()
	defer s.checkpointing.Unlock()
	s.gate.Lock() // no frame is between journal and TSDB
	number, err := s.journal.rotate()
	file := checkpointFile{Devices: map[string][]stream{}}
	s.mu.Lock()
	for id, d := range s.devices {
		// Whoever holds d.mu waits for the gate or has not come to it: streams stand still.
		file.Devices[id] = append([]stream(nil), d.streams...)
	}
	s.mu.Unlock()
	s.gate.Unlock()
	if err != nil {
		return err
	}
	if err := s.synced.sync(s.tsdbDir()); err != nil {
		return durable.Explain(err, "sync the TSDB's log")
	}
	s.metadata.mu.Lock()
	file.Metadata = s.metadata.workspaces
	b, err := durable.Encode(checkpointFormat, file)
	s.metadata.mu.Unlock()
	if err != nil {
		return err
	}
	if err := durable.WriteFile(s.cfg.FS, s.checkpointPath(), b, 0o600); err != nil {
		return err
	}
	return s.journal.remove(number)
}

// walPosition remembers which files of the TSDB's two logs are synced: "wal"
// takes samples in order, "wbl" those out of order.
type walPosition struct{ wal, wbl int }

// sync makes durable what the TSDB has committed. Its Commit leaves everything
// written to the operating system (it flushes its page after the last record),
// so syncing the files and their names from outside is enough. A file that the TSDB removes
// meanwhile is in a block or in a checkpoint of the log, both of which it syncs.
func (p *walPosition) sync(dir string) error {
	return errors.Join(
		syncLog(filepath.Join(dir, "wal"), &p.wal), syncLog(filepath.Join(dir, "wbl"), &p.wbl),
		durable.OS{}.SyncDir(dir), // the names of the logs
	)
}

// syncLog syncs the files of a log from number *from on, and sets it to the last one.
func syncLog(dir string, from *int) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	last := *from
	for _, e := range list {
		n, err := strconv.Atoi(e.Name())
		if err != nil || n < *from {
			continue
		}
		if err := syncFile(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		last = max(last, n)
	}
	if err := (durable.OS{}).SyncDir(dir); err != nil {
		return err
	}
	*from = last
	return nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
