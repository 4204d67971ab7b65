package messages

import (
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
	"github.com/atelier-edge/atelier/internal/wire"
)

// bench is a store of messages with a device that the test plays.
type bench struct {
	testing.TB
	dir       string
	catalog   store.Store
	workspace string
	device    atelier.Device
	now       time.Time
	stream    string
	*Store
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{TB: t, dir: t.TempDir(), workspace: atelier.NewID(), stream: atelier.NewID(), now: time.Now().Truncate(time.Millisecond)}
	var err error
	if b.catalog, err = sqlite.Open(t.Context(), filepath.Join(b.dir, "hub.db")); err != nil {
		t.Fatal(err)
	}
	b.device = atelier.Device{Meta: atelier.Meta{ID: atelier.NewID(), Name: "press"}, Labels: atelier.Labels{"site": "a"}}
	b.open()
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := b.catalog.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) open() {
	b.Helper()
	s, err := Open(Config{Store: b.catalog, Dir: filepath.Join(b.dir, "messages"), Limit: MinLimit, Keep: 24 * time.Hour, Now: func() time.Time { return b.now }, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		b.Fatal(err)
	}
	b.Store = s
}

func (b *bench) frame(sequence, previous uint64, age time.Duration, list ...wire.ModuleMessage) []byte {
	b.Helper()
	var payload []byte
	for i := range list {
		var err error
		if payload, err = wire.AppendMessages(payload, &list[i]); err != nil {
			b.Fatal(err)
		}
	}
	f := wire.TelemetryFrame{
		Stream: b.stream, Sequence: sequence, Previous: previous, Payload: payload,
		Taken: wire.Clock{BootID: "boot", Monotone: time.Hour, Wall: b.now}, Sent: wire.Clock{BootID: "boot", Monotone: time.Hour + age, Wall: b.now.Add(-time.Hour)},
	}
	raw, err := f.Encode(nil)
	if err != nil {
		b.Fatal(err)
	}
	return raw
}

func text(module, text string) wire.ModuleMessage {
	return wire.ModuleMessage{Kind: wire.FromOutput, Module: module, Output: "o", Time: 1_700_000_000_000, TTL: 60, Payload: []byte(text)}
}

func (b *bench) ingest(frame []byte) uint64 {
	b.Helper()
	ack, err := b.Ingest(b.Context(), b.workspace, b.device, frame)
	if err != nil {
		b.Fatal(err)
	}
	return ack.Through
}

// all reads every message, by pages of two.
func (b *bench) all(f Filter) (texts []string) {
	b.Helper()
	f.Limit = 2
	for {
		page, next, err := b.List(b.device, f)
		if err != nil {
			b.Fatal(err)
		}
		for _, m := range page {
			texts = append(texts, m.Text+string(m.JSON))
		}
		if next == "" {
			return texts
		}
		f.After = next
	}
}

func same(t testing.TB, got []string, want string) {
	t.Helper()
	if strings.Join(got, " ") != want {
		t.Errorf("there are %q, want %q", got, want)
	}
}

func TestStoresOnceAndInOrder(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	same(t, b.all(Filter{}), "")
	first := b.frame(1, 0, 0, text("a", "1"), text("b", "2"), text("a", "3"))
	if n := b.ingest(b.frame(2, 1, 0, text("a", "4"))); n != 0 {
		t.Errorf("a frame that came too early is acknowledged through %d", n)
	}
	for range 2 {
		if n := b.ingest(first); n != 1 {
			t.Errorf("acknowledged through %d", n)
		}
	}
	b.ingest(b.frame(4, 1, 0, text("a", "4"), text("a", "5")))
	same(t, b.all(Filter{}), "1 2 3 4 5")
	same(t, b.all(Filter{Module: "a"}), "1 3 4 5")
	same(t, b.all(Filter{Module: "a", Output: "x"}), "")
	page, _, err := b.List(b.device, Filter{Limit: 3})
	if err != nil {
		t.Fatal(err)
	}
	if m := page[2]; m.Device != "press" || m.Module != "a" || m.Output != "o" || string(m.JSON) != "3" && m.Text != "3" || !m.Received.Equal(b.now) || m.Time.Year() != 2023 {
		t.Errorf("%+v", m)
	}
	same(t, b.all(Filter{After: page[1].ID}), "3 4 5")
	for _, wrong := range []string{"x", "a-b-c", atelier.NewID() + "-1", atelier.NewID() + "-1--1", strings.Repeat("-", 80)} {
		if _, _, err := b.List(b.device, Filter{After: wrong, Limit: 1}); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	// A hub that begins anew knows what it has.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b.open()
	if got := b.Acked(b.device.ID); got[b.stream] != 4 {
		t.Errorf("stored is %v", got)
	}
	if n := b.ingest(first); n != 4 {
		t.Errorf("acknowledged through %d", n)
	}
	same(t, b.all(Filter{}), "1 2 3 4 5")
}

func TestForgetsWhatIsOldOrTooMuch(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.ingest(b.frame(1, 0, 61*time.Second, text("a", "outlived")))
	b.ingest(b.frame(2, 0, 59*time.Second, text("a", "just")))
	same(t, b.all(Filter{}), "just")
	b.now = b.now.Add(23 * time.Hour)
	b.ingest(b.frame(3, 0, 0, text("a", "young")))
	b.now = b.now.Add(2 * time.Hour)
	same(t, b.all(Filter{}), "young")
	if err := b.expire(); err != nil {
		t.Fatal(err)
	}
	same(t, b.all(Filter{}), "young")
	large := strings.Repeat("x", wire.MaxMessagePayload-100)
	for i := range 20 {
		b.now = b.now.Add(time.Second)
		b.ingest(b.frame(uint64(4+i), 0, 0, text("a", fmt.Sprint(i, large))))
	}
	kept := b.all(Filter{})
	if n := len(kept); n < 8 || n > 11 || !strings.HasPrefix(kept[n-1], "19") {
		t.Errorf("%d of 20 large ones are kept", n)
	}
	b.now = b.now.Add(48 * time.Hour)
	if err := b.expire(); err != nil {
		t.Fatal(err)
	}
	if n := b.bytes(); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
	b.Forget(b.device.ID)
	if got := b.Acked(b.device.ID); len(got) != 0 {
		t.Errorf("of a forgotten device there is %v", got)
	}
}

func (b *bench) bytes() int64 {
	d := b.Store.device(b.device.ID)
	defer d.mu.Unlock()
	return d.spool.Stats().Bytes
}

func TestTakesNoMoreThanItMust(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if _, err := b.Ingest(t.Context(), b.workspace, b.device, []byte("nonsense")); err == nil {
		t.Error("nonsense was taken")
	}
	f := wire.TelemetryFrame{Stream: b.stream, Sequence: 1, Payload: []byte("no batch"), Taken: wire.Clock{Wall: b.now}, Sent: wire.Clock{Wall: b.now}}
	raw, err := f.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := b.ingest(raw); n != 1 { // it would not get better by being sent again
		t.Errorf("acknowledged through %d", n)
	}
	large := strings.Repeat("x", wire.MaxMessagePayload)
	for i := uint64(2); ; i++ {
		_, err := b.Ingest(t.Context(), b.workspace, b.device, b.frame(i, 0, 0, text("a", large)))
		if atelier.CodeOf(err) == atelier.Exhausted {
			break
		}
		if err != nil || i > 300 {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
}

func TestKeepsWhatModulesReport(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	deployment := atelier.NewID()
	err := b.catalog.Update(t.Context(), store.By{Actor: "test"}, func(tx store.Tx) error {
		for i, labels := range []atelier.Labels{{"site": "a"}, {"site": "b"}} {
			d := atelier.Deployment{Meta: atelier.Meta{Name: []string{"a", "b"}[i]}, Selector: atelier.Selector{Labels: labels}}
			if i == 0 {
				d.ID = deployment
			}
			if _, err := catalog.Deployments.Insert(tx, b.workspace, "", d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	report := func(module, properties string, version uint64) wire.ModuleMessage {
		return wire.ModuleMessage{Kind: wire.FromTwin, Module: module, Version: version, Payload: []byte(properties)}
	}
	if n := b.ingest(b.frame(1, 0, 0, report("a", `{"x":1}`, 1), report("b", `{"x":1}`, 1), report("c", `{}`, 1), report("a", `[]`, 2))); n != 1 {
		t.Errorf("acknowledged through %d", n)
	}
	b.ingest(b.frame(2, 1, 0, report("a", `{"x":2}`, 3)))
	count := 0
	err = b.catalog.View(t.Context(), func(tx store.Tx) error {
		return catalog.ReportedTwins.Each(tx, store.Query{Workspace: b.workspace}, func(r catalog.ReportedTwin) error {
			count++
			if r.Name != b.device.ID || r.Reported.Version != 3 || string(r.Reported.Properties) != `{"x":2}` || !r.Reported.Received.Equal(b.now) {
				t.Errorf("%+v", r)
			}
			return nil
		})
	})
	if err != nil || count != 1 {
		t.Errorf("%d twins, %v", count, err)
	}
	same(t, b.all(Filter{}), "")
}
