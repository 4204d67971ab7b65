package content

import "github.com/atelier-edge/atelier/internal/durable"

// saving is a checkpoint that is being made.
type saving struct {
	made   chan struct{} // closed when what follows is set
	length int64         // of the record
	err    error
}

// checkpoint begins to sync the data that is pending and then to write to the record that
// it is there. More may come in meanwhile: a disk that takes half a second to sync would
// otherwise let the line stand still, since nobody asks for more. At most one is being
// made, so that a slow disk slows what comes in.
func (in *Ingest) checkpoint() error {
	if err := in.settle(); err != nil || len(in.pending) == 0 {
		return err
	}
	s, pending := &saving{made: make(chan struct{}), length: in.length}, in.pending
	in.saving, in.pending, in.saved = s, nil, in.store.now()
	go func() {
		defer close(s.made)
		s.length, s.err = in.save(pending, s.length)
	}()
	return nil
}

// settle waits until the checkpoint that was begun last is made.
func (in *Ingest) settle() error {
	if s := in.saving; s != nil {
		<-s.made
		in.saving, in.length = nil, s.length
		if s.err != nil {
			// After a failed sync the system may have dropped what it could not
			// write: nothing more may be claimed by this Ingest.
			in.failed = durable.Explain(s.err, "save progress of content "+string(in.digest))
		}
	}
	return in.failed
}

// save syncs the data, then adds ranges to the record, which has that length, and syncs
// that. It returns the record's length from then on.
func (in *Ingest) save(ranges Ranges, length int64) (int64, error) {
	if err := in.data.Sync(); err != nil {
		return length, err
	}
	var b []byte
	for _, r := range ranges {
		b = appendEntry(b, in.sum, r)
	}
	if _, err := in.record.WriteAt(b, length); err != nil {
		return length, err
	}
	if err := in.record.Sync(); err != nil {
		return length, err
	}
	return length + int64(len(b)), in.store.fs.SyncDir(in.store.dir) // the names; cheap once they are on disk
}
