package bundles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// watch watches until the test ends.
func (i *island) watch() {
	i.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { i.importer.Watch(ctx) })
	i.Cleanup(func() { cancel(); group.Wait() })
	i.until("the directory is there", func() error { _, err := os.Stat(i.watched); return err })
}

// until waits for something.
func (i *island) until(what string, try func() error) {
	i.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			i.Fatalf("%s: never; the last time: %v", what, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// says waits until the newest outcome of a bundle is in a state.
func (i *island) says(name, state string, reason atelier.Reason) {
	i.Helper()
	i.until(name+" is "+state, func() error {
		for _, o := range i.importer.Outcomes() {
			if o.Name == name && o.State == state && o.Why.Reason() == reason {
				return nil
			}
		}
		return fmt.Errorf("%+v", i.importer.Outcomes())
	})
}

func (i *island) put(name string, b []byte) {
	i.Helper()
	if err := os.WriteFile(filepath.Join(i.watched, name), b, 0o600); err != nil {
		i.Fatal(err)
	}
}

func TestWatchImportsWhatAppears(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	if err := os.MkdirAll(filepath.Join(i.watched, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	raw := i.parcel(1, "one").bytes(t)
	unpack(t, raw, filepath.Join(i.watched, "before")) // was there before the agent
	i.watch()
	i.says("before", StateImported, atelier.ReasonAsDesired)
	i.until("it is put away", func() error { _, err := os.Stat(filepath.Join(i.watched, "done", "before", "index.json")); return err })

	next := i.parcel(2, "two").bytes(t)
	i.put("next.tar", next[:len(next)/2])
	i.put("other.part", next[:len(next)/2])
	i.says("next.tar", StateIncomplete, atelier.ReasonBundleIncomplete)
	why := filepath.Join(i.watched, "next.tar.why")
	i.until("it says why", func() error { _, err := os.Stat(why); return err })
	i.put("next.tar", next)
	i.says("next.tar", StateImported, atelier.ReasonAsDesired)
	i.until("what it said is gone", func() error {
		if _, err := os.Stat(why); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %v", why, err)
		}
		return nil
	})
	if i.state.Position().Generation != 2 || !i.has("two") {
		t.Error("the second bundle did not arrive")
	}
	for _, o := range i.importer.Outcomes() {
		if o.Name != "before" && o.Name != "next.tar" {
			t.Errorf("%s was taken for a bundle", o.Name)
		}
	}
}

func TestWatchSaysWhyItRefuses(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	i.watch()
	i.takes(i.parcel(5, "five").file(t))
	i.put("old.tar", i.parcel(4, "four").bytes(t))
	i.put("notes.txt", []byte(strings.Repeat("buy milk\n", 100)))
	i.says("old.tar", StateRefused, atelier.ReasonReplayed)
	i.says("notes.txt", StateRefused, atelier.ReasonBundleInvalid)
	i.until("it says why beside it", func() error {
		b, err := os.ReadFile(filepath.Join(i.watched, "old.tar.why"))
		if err == nil && (!strings.Contains(string(b), "refused: Replayed\ngeneration 4 of epoch 1 came") || strings.Count(string(b), "\n") != 3) {
			err = fmt.Errorf("it says %q", b)
		}
		return err
	})
	// Another one in its place is looked at.
	i.put("old.tar", i.parcel(6, "six").bytes(t))
	i.says("old.tar", StateImported, atelier.ReasonAsDesired)
}

func TestWatchRemovesWhereNothingIsKept(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	i.importer.opts.Keep = false
	i.watch()
	unpack(t, i.parcel(1, "one").bytes(t), filepath.Join(i.watched, "b"))
	i.says("b", StateImported, atelier.ReasonAsDesired)
	i.until("it is removed", func() error {
		list, err := os.ReadDir(i.watched)
		if err == nil && len(list) > 0 {
			err = fmt.Errorf("%v", list)
		}
		return err
	})
}
