package collect

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"math"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/parquet-go/parquet-go"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
	"github.com/atelier-edge/atelier/internal/collect"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// harness is a store with a workspace, a device, and a deployment that collects.
type harness struct {
	t         *testing.T
	cfg       Config
	store     *Store
	workspace string
	device    atelier.Device
	rollout   string
	texts     string // the rollout of a script
	now       atomic.Int64
}

var began = time.Date(2026, 7, 1, 23, 59, 50, 0, time.UTC)

// tensors are of all datatypes, under names that are no identifiers.
var everyType = &atelier.Signature{
	Inputs: []atelier.TensorSpec{
		{Name: "input.1", Type: "FP32", Shape: []int64{-1, 2}}, {Name: "größe,=", Type: "INT64", Shape: []int64{1}}, {Name: "text", Type: "BYTES", Shape: []int64{-1}},
		{Name: "half", Type: "FP16", Shape: []int64{2}}, {Name: "flag", Type: "BOOL", Shape: []int64{2}}, {Name: "u8", Type: "UINT8", Shape: []int64{1}},
		{Name: "u64", Type: "UINT64", Shape: []int64{1}}, {Name: "double", Type: "FP64", Shape: []int64{1}}, {Name: "brain", Type: "BF16", Shape: []int64{1}},
	},
	Outputs: []atelier.TensorSpec{{Name: "label", Type: "INT64", Shape: []int64{-1}}},
}

func newHarness(t *testing.T, change func(*Config)) *harness {
	t.Helper()
	dir := t.TempDir()
	db, err := sqlite.Open(t.Context(), filepath.Join(dir, "hub.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	blobs, err := content.Open(durable.OS{}, filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, device: atelier.Device{Meta: atelier.Meta{Name: "press-4"}}}
	h.now.Store(began.UnixMilli())
	h.cfg = Config{
		Store: db, Content: blobs, Dir: filepath.Join(dir, "data"), Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.UnixMilli(h.now.Load()) },
	}
	if change != nil {
		change(&h.cfg)
	}
	h.update(func(tx store.Tx) error {
		w, err := catalog.Workspaces.Insert(tx, "", "", atelier.Workspace{Meta: atelier.Meta{Name: "plant"}})
		if err != nil {
			return err
		}
		h.workspace = w.ID
		if h.device, err = catalog.Devices.Insert(tx, w.ID, "", h.device); err != nil {
			return err
		}
		h.rollout, err = h.deploy(tx, "digits", atelier.Variant{Kind: atelier.VariantONNX, Signature: everyType})
		if err == nil {
			h.texts, err = h.deploy(tx, "rules", atelier.Variant{Kind: atelier.VariantPython})
		}
		return err
	})
	h.open()
	return h
}

func (h *harness) deploy(tx store.Tx, name string, variant atelier.Variant) (rollout string, err error) {
	v, err := catalog.Versions.Insert(tx, h.workspace, name, atelier.Version{Meta: atelier.Meta{Name: "3"}, Model: name, Number: 3, Variants: []atelier.Variant{variant}})
	if err != nil {
		return "", err
	}
	c := atelier.Collection{Share: 1}.Complete()
	d, err := catalog.Deployments.Insert(tx, h.workspace, "", atelier.Deployment{Meta: atelier.Meta{Name: name}, Selector: atelier.Selector{All: true}, Collect: &c})
	if err != nil {
		return "", err
	}
	r, err := catalog.Rollouts.Insert(tx, h.workspace, "", atelier.Rollout{
		Deployment: d.ID, DeploymentName: name, Endpoint: name, Model: name, Version: 3, VersionID: v.ID, Digest: atelier.DigestOf([]byte(name)),
	})
	return r.ID, err
}

func (h *harness) update(fn func(store.Tx) error) {
	h.t.Helper()
	if err := h.cfg.Store.Update(context.Background(), store.By{Actor: "test"}, fn); err != nil {
		h.t.Fatal(err)
	}
}

// open opens the store, anew where it is open: what it had in memory is gone.
func (h *harness) open() {
	h.t.Helper()
	if h.store != nil {
		if err := h.store.Close(); err != nil {
			h.t.Fatal(err)
		}
	}
	var err error
	if h.store, err = Open(h.t.Context(), h.cfg); err != nil {
		h.t.Fatal(err)
	}
	s := h.store
	h.t.Cleanup(func() { _ = s.Close() })
}

const stream = "01jz0000000000000000000s01"

func encodeFrame(t *testing.T, sequence, previous uint64, payload []byte) []byte {
	t.Helper()
	f := wire.TelemetryFrame{Stream: stream, Sequence: sequence, Previous: previous, Encoding: wire.Snappy, Payload: payload}
	b, err := f.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func batchOf(rollout string, records ...collect.Record) []byte {
	b := collect.AppendBatch(nil, rollout)
	for i := range records {
		b = collect.AppendRecord(b, records[i].Encode(nil))
	}
	return snappy.Encode(nil, b)
}

func (h *harness) ingest(sequence uint64, payload []byte) (wire.Ack, error) {
	return h.store.Ingest(h.t.Context(), h.workspace, h.device, encodeFrame(h.t, sequence, sequence-1, payload))
}

// takes ingests a batch that must be acknowledged.
func (h *harness) takes(sequence uint64, payload []byte) {
	h.t.Helper()
	if ack, err := h.ingest(sequence, payload); err != nil || ack.Through != sequence {
		h.t.Fatalf("batch %d: acknowledged through %d: %v", sequence, ack.Through, err)
	}
}

func (h *harness) flush() {
	h.t.Helper()
	if err := h.store.Flush(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) files() (files []atelier.DataFile) {
	h.t.Helper()
	err := h.cfg.Store.View(h.t.Context(), func(tx store.Tx) (err error) {
		files, err = catalog.DataFiles.List(tx, store.Query{Workspace: h.workspace, Limit: 1000})
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return files
}

// requests returns the ids of all requests in all files, in the files' order.
func (h *harness) requests() (ids []string) {
	h.t.Helper()
	for _, f := range h.files() {
		for _, r := range readRows[struct {
			Request string `parquet:"request"`
		}](h, f) {
			ids = append(ids, r.Request)
		}
	}
	return ids
}

func readRows[T any](h *harness, f atelier.DataFile) []T {
	h.t.Helper()
	_, b, err := h.store.OpenFile(h.t.Context(), h.workspace, f.Endpoint, f.ID)
	if err != nil {
		h.t.Fatal(err)
	}
	defer b.Close()
	rows, err := parquet.Read[T](b, b.Size())
	if err != nil {
		h.t.Fatal(err)
	}
	if len(rows) != f.Records {
		h.t.Errorf("%s has %d rows, its row says %d", f.Name, len(rows), f.Records)
	}
	return rows
}

func floats(values ...float32) (b []byte) {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

func plain(id string) collect.Record {
	return collect.Record{
		Time: began, Request: id, Dialect: collect.DialectV2, Status: 200, Latency: 1500 * time.Microsecond,
		Inputs:  []collect.Value{{Name: "input.1", Type: "FP32", Shape: []int64{1, 2}, Data: floats(1.5, -2)}},
		Outputs: []collect.Value{{Name: "label", Type: "INT64", Shape: []int64{1}, Data: binary.LittleEndian.AppendUint64(nil, 7)}},
	}
}

func TestRecordsBecomeFilesOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	h.takes(1, batchOf(h.rollout, plain("a"), plain("b")))
	h.takes(2, batchOf(h.rollout, plain("c")))
	if ack, err := h.ingest(1, batchOf(h.rollout, plain("again"))); err != nil || ack.Through != 2 {
		t.Errorf("a batch that came again: %v, %v", ack, err)
	}
	early, err := h.store.Ingest(t.Context(), h.workspace, h.device, encodeFrame(t, 9, 8, batchOf(h.rollout, plain("early"))))
	if err != nil || early.Through != 2 {
		t.Errorf("a batch that came early: %v, %v", early, err)
	}
	if n := len(h.files()); n != 0 {
		t.Errorf("%d files are there before there are any", n)
	}
	h.open() // as after a kill: what is in no file is in the journal
	if acked := h.store.Acked(h.device.ID); acked[stream] != 2 {
		t.Errorf("after a restart the store has %v", acked)
	}
	h.flush()
	if ids := h.requests(); !slices.Equal(ids, []string{"a", "b", "c"}) {
		t.Errorf("the files have %v", ids)
	}
	f := h.files()[0]
	if want := "digits/3/2026-07-01/" + f.ID + ".parquet"; f.Name != want || f.ModelDigest != atelier.DigestOf([]byte("digits")) || f.Records != 3 {
		t.Errorf("the file is %+v", f)
	}
	h.open()
	h.flush()
	h.takes(3, batchOf(h.rollout, plain("d")))
	h.flush()
	if ids := h.requests(); !slices.Equal(ids, []string{"a", "b", "c", "d"}) {
		t.Errorf("the files have %v", ids)
	}
}

// A journal that is there again after its records are in files, as when the hub was killed
// before it could remove it, changes nothing.
func TestJournalThatStaysIsNoSecondCopy(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *Config) { c.FS = &stubborn{FS: durable.OS{}} })
	h.takes(1, batchOf(h.rollout, plain("a")))
	if err := h.store.Flush(t.Context()); err == nil {
		t.Fatal("the journal was removed all the same")
	}
	h.cfg.FS = nil
	h.open()
	h.takes(2, batchOf(h.rollout, plain("b")))
	h.flush()
	if ids := h.requests(); !slices.Equal(ids, []string{"a", "b"}) {
		t.Errorf("the files have %v", ids)
	}
}

// stubborn removes nothing.
type stubborn struct{ durable.FS }

func (stubborn) Remove(string) error { return atelier.Errorf(atelier.Internal, "killed just before") }

func TestEveryTypeHasItsColumn(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	r := plain("x")
	r.Inputs = []collect.Value{
		{Name: "input.1", Type: "FP32", Shape: []int64{2, 2}, Data: floats(1, 2, 3), Cut: true},
		{Name: "größe,=", Type: "INT64", Shape: []int64{1}, Data: binary.LittleEndian.AppendUint64(nil, 1<<40)},
		{Name: "text", Type: "BYTES", Shape: []int64{2}, Data: []byte("\x02\x00\x00\x00hi\x01\x00\x00\x00\xff")},
		{Name: "half", Type: "FP16", Shape: []int64{2}, Data: []byte{0x00, 0x3e, 0x01, 0x80}}, // 1.5 and the smallest below 0
		{Name: "flag", Type: "BOOL", Shape: []int64{2}, Data: []byte{1, 0}},
		{Name: "u8", Type: "UINT8", Shape: []int64{1}, Data: []byte{200}},
		{Name: "u64", Type: "UINT64", Shape: []int64{1}, Data: bytes.Repeat([]byte{0xff}, 8)},
		{Name: "double", Type: "FP64", Shape: []int64{1}, Masked: true},
		{Name: "brain", Type: "BF16", Shape: []int64{1}, Data: []byte{0xc0, 0x3f}},
	}
	h.takes(1, batchOf(h.rollout, r))
	h.flush()
	type tensor[T any] struct {
		Shape  []int64 `parquet:"shape,list"`
		Values []T     `parquet:"values,list"`
	}
	rows := readRows[struct {
		Time, Received int64 `parquet:",timestamp(microsecond)"`
		Device         string
		Version        int32
		LatencyUS      int64    `parquet:"latency_us"`
		Masked         []string `parquet:"masked,list"`
		Cut            []string `parquet:"cut,list"`
		Inputs         struct {
			Input  *tensor[float32] `parquet:"input.1"`
			Text   *tensor[[]byte]  `parquet:"text"`
			Half   *tensor[float32] `parquet:"half"`
			Flag   *tensor[bool]    `parquet:"flag"`
			U8     *tensor[uint8]   `parquet:"u8"`
			U64    *tensor[uint64]  `parquet:"u64"`
			Double *tensor[float64] `parquet:"double"`
			Brain  *tensor[float32] `parquet:"brain"`
		} `parquet:"inputs"`
		Outputs struct {
			Label *tensor[int64] `parquet:"label"`
		} `parquet:"outputs"`
	}](h, h.files()[0])
	got := rows[0]
	if !slices.Equal(got.Masked, []string{"inputs.double"}) || !slices.Equal(got.Cut, []string{"inputs.input.1"}) || got.LatencyUS != 1500 {
		t.Errorf("masked %v, cut %v, latency %d", got.Masked, got.Cut, got.LatencyUS)
	}
	in := got.Inputs
	switch {
	case in.Input == nil || !slices.Equal(in.Input.Values, []float32{1, 2, 3}) || !slices.Equal(in.Input.Shape, []int64{2, 2}):
		t.Errorf("input.1 is %+v", in.Input)
	case in.Text == nil || len(in.Text.Values) != 2 || string(in.Text.Values[1]) != "\xff":
		t.Errorf("text is %+v", in.Text)
	case in.Half == nil || !slices.Equal(in.Half.Values, []float32{1.5, -1.0 / (1 << 24)}):
		t.Errorf("half is %+v", in.Half)
	case in.Flag == nil || !slices.Equal(in.Flag.Values, []bool{true, false}):
		t.Errorf("flag is %+v", in.Flag)
	case in.U8 == nil || in.U8.Values[0] != 200 || in.U64 == nil || in.U64.Values[0] != math.MaxUint64:
		t.Errorf("u8 is %+v, u64 %+v", in.U8, in.U64)
	case in.Double != nil:
		t.Errorf("a masked value is %+v", in.Double)
	case in.Brain == nil || in.Brain.Values[0] != 1.5:
		t.Errorf("brain is %+v", in.Brain)
	case got.Outputs.Label == nil || !slices.Equal(got.Outputs.Label.Values, []int64{7}):
		t.Errorf("label is %+v", got.Outputs.Label)
	}
}

func TestScriptsHaveMaps(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	r := plain("x")
	r.Dialect = collect.DialectScript
	r.Inputs = []collect.Value{{Name: "data", Type: collect.TypeJSON, Data: []byte(`[[1,2]]`)}, {Name: "name", Type: collect.TypeJSON, Masked: true}}
	r.Outputs = []collect.Value{{Name: "body", Type: collect.TypeJSON, Data: []byte(`3`)}}
	none := r
	none.Inputs, none.Outputs = nil, nil
	h.takes(1, batchOf(h.texts, r, none))
	h.flush()
	rows := readRows[struct {
		Inputs  map[string]string `parquet:"inputs"`
		Outputs map[string]string `parquet:"outputs"`
		Masked  []string          `parquet:"masked,list"`
	}](h, h.files()[0])
	if rows[0].Inputs["data"] != `[[1,2]]` || len(rows[0].Inputs) != 1 || rows[0].Outputs["body"] != "3" || !slices.Equal(rows[0].Masked, []string{"inputs.name"}) {
		t.Errorf("the first row is %+v", rows[0])
	}
	if len(rows[1].Inputs) != 0 {
		t.Errorf("the second row is %+v", rows[1])
	}
}

// What a device may not send, or nobody can read, is passed over, and the device goes on.
func TestHostileDevices(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	var foreign, off string
	h.update(func(tx store.Tx) (err error) {
		w, err := catalog.Workspaces.Insert(tx, "", "", atelier.Workspace{Meta: atelier.Meta{Name: "other"}})
		if err != nil {
			return err
		}
		mine := h.workspace
		h.workspace = w.ID
		foreign, err = h.deploy(tx, "theirs", atelier.Variant{Kind: atelier.VariantONNX, Signature: everyType})
		h.workspace = mine
		if err != nil {
			return err
		}
		if off, err = h.deploy(tx, "elsewhere", atelier.Variant{Kind: atelier.VariantONNX, Signature: everyType}); err != nil {
			return err
		}
		d, err := catalog.Deployments.Find(tx, h.workspace, "", "elsewhere")
		if err != nil {
			return err
		}
		d.Selector = atelier.Selector{Labels: atelier.Labels{"site": "b"}} // not this device
		_, err = catalog.Deployments.Update(tx, h.workspace, d)
		return err
	})
	unknown, twice, wrong := plain("unknown"), plain("twice"), plain("wrong")
	unknown.Inputs[0].Name = "secret"
	twice.Inputs = append(twice.Inputs, twice.Inputs[0])
	wrong.Inputs[0].Type, wrong.Inputs[0].Data = "FP64", make([]byte, 16)
	script := plain("script")
	script.Dialect = collect.DialectScript
	bomb := snappy.Encode(nil, make([]byte, 1<<20))
	for i, payload := range [][]byte{
		[]byte("garbage"), {}, bomb, batchOf(foreign, plain("foreign")), batchOf(off, plain("off")), batchOf(atelier.NewID(), plain("nowhere")),
		batchOf("../../etc", plain("path")), batchOf(h.rollout, unknown, twice, wrong, script), snappy.Encode(nil, collect.AppendRecord(collect.AppendBatch(nil, h.rollout), []byte("torn"))),
	} {
		h.takes(uint64(i+1), payload)
	}
	h.takes(10, batchOf(h.rollout, plain("good")))
	h.flush()
	if ids := h.requests(); !slices.Equal(ids, []string{"good"}) {
		t.Errorf("the files have %v", ids)
	}
	for _, frame := range [][]byte{nil, []byte("no frame"), append(encodeFrame(t, 11, 10, nil), 1)} {
		if _, err := h.store.Ingest(t.Context(), h.workspace, h.device, frame); err == nil {
			t.Errorf("a frame of %d bytes was taken", len(frame))
		}
	}
	// It sends as fast as it can: what is beyond its rate is not acknowledged.
	noise := make([]byte, 100<<10)
	for i := range noise {
		noise[i] = byte(i * i >> 3)
	}
	h.device.ID = atelier.NewID()
	var err error
	n := uint64(0)
	for ; err == nil && n < 1000; n++ {
		_, err = h.ingest(n+1, snappy.Encode(nil, collect.AppendRecord(collect.AppendBatch(nil, h.rollout), noise[:90<<10])))
	}
	if atelier.CodeOf(err) != atelier.Exhausted {
		t.Errorf("after %d batches at once: %v", n, err)
	}
	h.now.Add(1000)
	if _, err := h.ingest(n, batchOf(h.rollout, plain("later"))); err != nil {
		t.Errorf("a second later: %v", err)
	}
}

func TestFilesAreKeptWithinTimeAndSize(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *Config) { c.Keep, c.Limit = 48*time.Hour, 1 })
	h.now.Store(time.Now().UnixMilli()) // rows have the store's time
	h.takes(1, batchOf(h.rollout, plain("a")))
	h.flush()
	if err := h.store.retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(h.files()); n != 0 {
		t.Errorf("%d files are there beyond the limit", n)
	}
	h.store.cfg.Limit = 1 << 20
	h.takes(2, batchOf(h.rollout, plain("b")))
	h.flush()
	if err := h.store.retain(t.Context()); err != nil || len(h.files()) != 1 {
		t.Errorf("a file within the limits: %v, %v", h.files(), err)
	}
	h.now.Add(int64(49 * time.Hour / time.Millisecond))
	if err := h.store.retain(t.Context()); err != nil || len(h.files()) != 0 {
		t.Errorf("a file that is too old: %v, %v", h.files(), err)
	}
	h.takes(3, batchOf(h.rollout, plain("c")))
	h.flush()
	if n, err := h.store.Delete(t.Context(), h.workspace, "digits", "2000-01-01"); err != nil || n != 0 {
		t.Errorf("deleted %d files from before 2000: %v", n, err)
	}
	if n, err := h.store.Delete(t.Context(), h.workspace, "digits", ""); err != nil || n != 1 || len(h.files()) != 0 {
		t.Errorf("deleted %d files: %v", n, err)
	}
}

// Blocks end by size too.
func TestLargeBlocksAreSeveralFiles(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *Config) { c.Bytes = 1 })
	for n := range uint64(3) {
		h.takes(n+1, batchOf(h.rollout, plain(string(rune('a'+n)))))
	}
	h.flush()
	if ids := h.requests(); len(h.files()) != 3 || !slices.Equal(ids, []string{"a", "b", "c"}) {
		t.Errorf("%d files have %v", len(h.files()), ids)
	}
}
