package collect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/collect"
)

// group is what goes into one file together.
type group struct {
	workspace, endpoint, version, date string
	variant                            int // of the version: which of them has what types
}

// block is what becomes files in one transaction.
type block struct {
	size    int64
	groups  map[group]*rows
	order   []group
	streams map[string]map[string]uint64 // by device and stream
	of      map[string]string            // workspaces of devices
	origins map[string]*origin           // by workspace and rollout
}

func newBlock() *block {
	return &block{groups: map[group]*rows{}, streams: map[string]map[string]uint64{}, of: map[string]string{}, origins: map[string]*origin{}}
}

// Flush makes files of all that came until now. Once it has returned, they can be listed.
func (s *Store) Flush(ctx context.Context) error {
	ctx = access.WithPrincipal(ctx, access.Principal{Kind: access.System})
	s.sealing.Lock()
	defer s.sealing.Unlock()
	// What comes from here on is counted anew, also where it is still among what becomes files.
	s.mu.Lock()
	since, waiting := s.since, s.waiting
	s.since, s.waiting = time.Time{}, 0
	s.mu.Unlock()
	numbers, err := s.journal.rotate()
	for i := 0; err == nil && i < len(numbers); i++ {
		err = s.convert(ctx, numbers[i])
	}
	if err != nil {
		s.mu.Lock()
		s.since, s.waiting = since, s.waiting+waiting // it is due still
		s.mu.Unlock()
	}
	return err
}

// convert makes files of a file of the journal, and removes it.
func (s *Store) convert(ctx context.Context, number uint64) error {
	b := newBlock()
	err := s.journal.each(number, func(r *record) error {
		if err := s.add(ctx, b, r); err != nil {
			return err
		}
		if b.size < s.cfg.Bytes {
			return nil
		}
		err := s.commit(ctx, b)
		b = newBlock()
		return err
	})
	if err == nil {
		err = s.commit(ctx, b)
	}
	if err != nil {
		return err
	}
	return s.journal.remove(number)
}

// add adds the records of a batch to a block, unless they are in files already.
func (s *Store) add(ctx context.Context, b *block, r *record) error {
	stored, err := s.inFiles(ctx, r)
	if err != nil || r.Sequence <= max(stored, b.streams[r.Device][r.Stream]) {
		return err
	}
	if b.streams[r.Device] == nil {
		b.streams[r.Device] = map[string]uint64{}
	}
	b.streams[r.Device][r.Stream], b.of[r.Device] = r.Sequence, r.Workspace
	if len(r.Payload) == 0 {
		return nil
	}
	batch, size, err := r.batch()
	if err != nil {
		return nil // it was read when it came; the disk has damaged it in a way that its checksum does not show
	}
	b.size += size
	o, err := s.origin(ctx, b, r.Workspace, batch.Rollout)
	if err != nil || o == nil {
		return err
	}
	received := time.UnixMilli(r.Received).UTC()
	for _, encoded := range batch.Records {
		rec, err := collect.DecodeRecord(encoded)
		variant := 0
		if err == nil {
			variant, err = variantOf(&o.version, &rec)
		}
		if err != nil {
			s.refused.Add(1)
			s.cfg.Log.Debug("refused a collected record", "device", r.Name, "error", err)
			continue
		}
		key := group{r.Workspace, o.rollout.Endpoint, o.rollout.VersionID, received.Format(time.DateOnly), variant}
		g := b.groups[key]
		if g == nil {
			g = &rows{origin: o}
			b.groups[key] = g
			b.order = append(b.order, key)
		}
		g.list = append(g.list, row{Record: rec, device: r.Device, name: r.Name, received: received, rollout: &o.rollout})
	}
	return nil
}

// inFiles returns how far a stream is in files.
func (s *Store) inFiles(ctx context.Context, r *record) (stored uint64, err error) {
	err = s.cfg.Store.View(ctx, func(tx store.Tx) error {
		d, err := catalog.DataStreams.Get(tx, r.Workspace, r.Device)
		if atelier.CodeOf(err) == atelier.NotFound {
			return nil
		}
		stored = through(d.Streams, r.Stream)
		return err
	})
	return stored, err
}

// origin returns where records come from, nil where that was deleted since they came.
func (s *Store) origin(ctx context.Context, b *block, workspace, rollout string) (*origin, error) {
	key := workspace + "/" + rollout
	if o, ok := b.origins[key]; ok {
		return o, nil
	}
	var o origin
	err := s.cfg.Store.View(ctx, func(tx store.Tx) (err error) {
		o, err = findOrigin(tx, workspace, rollout)
		return err
	})
	if atelier.CodeOf(err) == atelier.NotFound {
		b.origins[key] = nil
		return nil, nil
	}
	if err == nil {
		b.origins[key] = &o
	}
	return &o, err
}

// commit writes a block's files, then their rows and how far the streams are.
func (s *Store) commit(ctx context.Context, b *block) error {
	var files []atelier.DataFile
	for _, key := range b.order {
		f, err := s.write(key, b.groups[key])
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	if len(b.streams) == 0 {
		return nil
	}
	return s.cfg.Store.Update(ctx, access.By(ctx), func(tx store.Tx) error {
		for i, f := range files {
			workspace := b.order[i].workspace
			if _, err := catalog.Workspaces.Get(tx, "", workspace); atelier.CodeOf(err) == atelier.NotFound {
				continue // it was deleted meanwhile
			}
			if _, err := catalog.DataFiles.Insert(tx, workspace, f.Endpoint, f); err != nil {
				return err
			}
		}
		for device, streams := range b.streams {
			if err := position(tx, b.of[device], device, streams); err != nil {
				return err
			}
		}
		return nil
	})
}

// position writes how far a device's streams are in files.
func position(tx store.Tx, workspace, device string, streams map[string]uint64) error {
	if _, err := catalog.Devices.Get(tx, workspace, device); atelier.CodeOf(err) == atelier.NotFound {
		return nil // it was deleted meanwhile
	}
	d, err := catalog.DataStreams.Get(tx, workspace, device)
	fresh := atelier.CodeOf(err) == atelier.NotFound
	if err != nil && !fresh {
		return err
	}
	for id, sequence := range streams {
		d.Streams = advance(d.Streams, id, sequence)
	}
	if fresh {
		d.ID = device
		_, err = catalog.DataStreams.Insert(tx, workspace, "", d)
		return err
	}
	return catalog.DataStreams.Record(tx, workspace, d)
}

// write writes the file of a group and returns its row.
func (s *Store) write(key group, g *rows) (f atelier.DataFile, err error) {
	slices.SortStableFunc(g.list, func(a, b row) int { return a.Time.Compare(b.Time) })
	var buffer bytes.Buffer
	if err := writeParquet(&buffer, &g.origin.version.Variants[key.variant], g.list); err != nil {
		return f, atelier.Errorf(atelier.Internal, "write collected records as Parquet: %w", err)
	}
	w, err := s.cfg.Content.Writer("")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := w.Write(buffer.Bytes()); err != nil {
		return f, err
	}
	info, err := w.Commit("", -1)
	if err != nil {
		return f, err
	}
	id := atelier.NewID()
	o := &g.origin.rollout
	return atelier.DataFile{
		Meta:     atelier.Meta{ID: id, Name: fmt.Sprintf("%s/%d/%s/%s.parquet", key.endpoint, o.Version, key.date, id)},
		Endpoint: key.endpoint, Model: o.Model, Version: o.Version, ModelDigest: o.Digest, Date: key.date, Digest: info.Digest, Size: info.Size,
		Records: len(g.list), First: g.list[0].Time, Last: g.list[len(g.list)-1].Time,
	}, nil
}
