package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Policy says what of the disk is used.
type Policy struct {
	Reserve int64 // bytes that stay free
	// Keep is how long content stays after nothing needed it any more, so that the
	// way back to it is short. A disk that is full does not wait for it.
	Keep time.Duration
	// KeepPrevious lets the version stay that each module ran before. Without it
	// that version is treated as content that nothing needs.
	KeepPrevious bool
}

// Holding is a version of a model that the device holds or shall hold.
type Holding struct {
	Model   string
	Version int
	Files   []atelier.File // those of its runtime included
	// Previous tells that nothing but the way back needs it.
	Previous bool
}

// needs returns which contents must stay under the policy, and the holdings that
// only the policy keeps.
func (f *Fetcher) needs(p Policy) (needed map[atelier.Digest]bool, previous []Holding) {
	needed = map[atelier.Digest]bool{}
	for _, h := range f.opts.Holdings() {
		if h.Previous {
			previous = append(previous, h)
		}
		if h.Previous && !p.KeepPrevious {
			continue
		}
		for _, file := range h.Files {
			needed[file.Digest] = true
		}
	}
	return needed, previous
}

// makeRoom checks that the disk can take files. Where it cannot, content that
// nothing needs goes at once.
func (f *Fetcher) makeRoom(ctx context.Context, files []atelier.File) error {
	short := f.room(files)
	if atelier.CodeOf(short) != atelier.NoSpace {
		return short
	}
	for range 2 { // the first pass condemns, the second removes
		if err := f.collect(ctx, 0); err != nil {
			return errors.Join(short, err)
		}
	}
	return f.room(files)
}

// room checks that the disk can take what is missing of files. What has come of
// them in an earlier attempt takes its space already.
func (f *Fetcher) room(files []atelier.File) error {
	var need int64
	for _, file := range files {
		arrived, err := f.store.Arrived(file.Digest, file.Size)
		if err != nil {
			return err
		}
		need += file.Size - arrived
	}
	free, err := f.store.Free()
	if err != nil {
		return err
	}
	policy := f.opts.Policy()
	if short := need + policy.Reserve - free; short > 0 {
		return f.noSpace(policy, files, need, free, short)
	}
	return nil
}

// noSpace says what is needed, what there is, and what would help.
func (f *Fetcher) noSpace(p Policy, files []atelier.File, need, free, short int64) error {
	size := atelier.FormatBytes
	kept := size(p.Reserve)
	if p.Reserve > free {
		kept = "all"
	}
	text := fmt.Sprintf("needs %s, %s free (%s of it kept in reserve)", size(need), size(free), kept)
	remedy := fmt.Sprintf("Free at least %s on the device, or remove a deployment from it.", size(short))
	freeable, versions, err := f.freeable(files)
	if err != nil {
		return err
	}
	if freeable > 0 {
		text += fmt.Sprintf(", %s can be freed by removing %s, kept for the way back", size(freeable), versions)
	}
	if freeable >= short {
		remedy = fmt.Sprintf("Set disk.keep_previous = false in the agent's configuration to give up the way back, or free at least %s on the device.", size(short))
	}
	return atelier.Errorf(atelier.NoSpace, "%s", text).WithRemedy("%s", remedy)
}

// freeable returns how many bytes the disk would gain if the device gave up the way
// back, and which versions those are. What files or something else needs is not
// counted.
func (f *Fetcher) freeable(files []atelier.File) (bytes int64, versions string, err error) {
	needed, previous := f.needs(Policy{KeepPrevious: false})
	for _, file := range files {
		needed[file.Digest] = true
	}
	numbers := map[string][]int{} // by model
	var models []string
	for _, h := range previous {
		var gain int64
		for _, file := range h.Files {
			if needed[file.Digest] {
				continue
			}
			needed[file.Digest] = true // counted once
			has, err := f.store.Has(file.Digest)
			if err != nil {
				return 0, "", err
			}
			if has {
				gain += file.Size
			}
		}
		if gain == 0 {
			continue
		}
		bytes += gain
		if numbers[h.Model] == nil {
			models = append(models, h.Model)
		}
		numbers[h.Model] = append(numbers[h.Model], h.Version)
	}
	slices.Sort(models)
	var parts []string
	for _, model := range models {
		parts = append(parts, versionsOf(model, numbers[model]))
	}
	return bytes, strings.Join(parts, " and "), nil
}

// versionsOf writes "versions 3 and 4 of digits".
func versionsOf(model string, numbers []int) string {
	slices.Sort(numbers)
	words := make([]string, 0, len(numbers))
	for _, n := range slices.Compact(numbers) {
		words = append(words, strconv.Itoa(n))
	}
	last := len(words) - 1
	if last == 0 {
		return fmt.Sprintf("version %s of %s", words[0], model)
	}
	return fmt.Sprintf("versions %s and %s of %s", strings.Join(words[:last], ", "), words[last], model)
}

// Times of garbage collection.
const (
	collectEvery = time.Hour // at most; more often where content is kept for less
	// staleAfter is how long an unfinished fetch is kept to be resumed.
	staleAfter = 7 * 24 * time.Hour
)

// Collect removes content that nothing needs, now and then until ctx ends. It
// tells failed why a pass did not work; the next one tries again.
func (f *Fetcher) Collect(ctx context.Context, failed func(error)) {
	for {
		keep := f.opts.Policy().Keep
		timer := time.NewTimer(min(collectEvery, max(time.Second, keep/2)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			if err := f.collect(ctx, keep); err != nil && ctx.Err() == nil {
				failed(err)
			}
		}
	}
}

// collect makes one pass. What came of content that nothing needs any more goes
// as the content itself would.
func (f *Fetcher) collect(ctx context.Context, keep time.Duration) error {
	// Asked anew for each: a desired state may arrive meanwhile.
	needed := func(d atelier.Digest) bool {
		needed, _ := f.needs(f.opts.Policy())
		return needed[d]
	}
	if err := f.store.AbortStale(staleAfter); err != nil {
		return err
	}
	if err := f.store.AbortUnneeded(keep, needed); err != nil {
		return err
	}
	_, err := f.store.Collect(ctx, keep, func(d atelier.Digest) (bool, error) { return needed(d), nil })
	return err
}
