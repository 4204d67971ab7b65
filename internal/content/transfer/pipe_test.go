package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// line carries frames one way: in order, after latency, at most rate bytes a
// second, and through fault, which says what arrives of a frame.
type line struct {
	latency time.Duration
	rate    float64          // 0 for no limit
	stalls  time.Duration    // what is on its way arrives only so often, after beforeStalls frames; 0 for at any time
	broken  [2]time.Duration // since epoch: from when until when sending fails
	busy    int              // refuses one frame in so many, as a connection that takes no more; 0 for none
	fault   func(n int, frame []byte) [][]byte
	deliver func([]byte)

	frames chan sentFrame
	mu     sync.Mutex
	n      int   // frames so far
	asked  int   // to send one
	data   int64 // bytes of content that were sent
}

type sentFrame struct {
	frame []byte
	due   time.Time
}

func (l *line) send(frame []byte) error {
	if now := time.Since(epoch); l.broken[0] <= now && now < l.broken[1] {
		return errors.New("not connected")
	}
	l.mu.Lock()
	if l.asked++; l.busy > 0 && l.asked%l.busy == 0 {
		l.mu.Unlock()
		return atelier.Errorf(atelier.Exhausted, "the line takes no more")
	}
	l.n++
	n := l.n
	if _, _, body, ok := unseal(frame, 1<<30); ok && kind(frame[1]) == kindData {
		if d, ok := decodeData(body); ok {
			l.data += int64(len(d.bytes))
		}
	}
	fault := l.fault
	l.mu.Unlock()
	out := [][]byte{frame}
	if fault != nil {
		out = fault(n, frame)
	}
	for _, f := range out {
		select {
		case l.frames <- sentFrame{f, time.Now().Add(l.latency)}:
		default:
			return errors.New("the line's buffer is full")
		}
	}
	return nil
}

func (l *line) sent() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.data
}

// beforeStalls is how many frames come before a line begins to stall.
const beforeStalls = 10

func (l *line) run(ctx context.Context) {
	n := 0
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-l.frames:
			if l.rate > 0 {
				time.Sleep(time.Duration(float64(len(s.frame)) / l.rate * 1e9))
			}
			time.Sleep(time.Until(s.due))
			if n++; l.stalls > 0 && n > beforeStalls {
				if early := s.due.Sub(epoch) % l.stalls; early > 0 {
					time.Sleep(time.Until(s.due.Add(l.stalls - early)))
				}
			}
			l.deliver(s.frame)
		}
	}
}

// memory is a blob in memory.
type memory struct {
	*bytes.Reader
}

func (m memory) Close() error { return nil }
func (m memory) Size() int64  { return m.Reader.Size() }

// world is a receiver with its disk, a sender with its content, and the lines
// between them.
type world struct {
	t        *testing.T
	disk     *durabletest.Disk
	store    *content.Store
	down, up *line
	open     func(ctx context.Context, peer string, d atelier.Digest) (Blob, error)
	differ   func(o Offer) (*Difference, *Pending) // nil for a sender that makes no differences
	ropts    ReceiverOptions
	sopts    SenderOptions

	mu     sync.Mutex
	recv   *Receiver
	sender *Sender
	stop   func() // the sender, and waits for it
}

// start brings up both sides. Everything ends with ctx and the returned function.
func start(t *testing.T, contents ...[]byte) *world {
	w := &world{t: t, disk: durabletest.NewDisk(), down: &line{}, up: &line{}}
	w.down.frames, w.up.frames = make(chan sentFrame, 4096), make(chan sentFrame, 4096)
	held := map[atelier.Digest][]byte{}
	for _, c := range contents {
		held[atelier.DigestOf(c)] = c
	}
	w.open = func(_ context.Context, _ string, d atelier.Digest) (Blob, error) {
		c, ok := held[d]
		if !ok {
			return nil, atelier.Errorf(atelier.NotFound, "no such content")
		}
		return memory{bytes.NewReader(c)}, nil
	}
	w.down.deliver = w.toReceiver
	w.up.deliver = func(f []byte) {
		w.mu.Lock()
		s := w.sender
		w.mu.Unlock()
		s.Handle("device", f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.down.run(ctx) })
	wg.Go(func() { w.up.run(ctx) })
	w.startReceiver()
	w.startSender()
	t.Cleanup(func() {
		w.stop()
		cancel()
		wg.Wait()
	})
	return w
}

func (w *world) toReceiver(f []byte) {
	w.mu.Lock()
	r := w.recv
	w.mu.Unlock()
	r.Handle(f)
}

// startReceiver begins with a new Receiver on what the disk holds.
func (w *world) startReceiver() {
	s, err := content.Open(w.disk, "/content", content.WithCheckpoint(smallestChunk, time.Hour))
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.store = s
	w.recv = NewReceiver(s, w.up.send, w.ropts)
}

// startSender begins with a new Sender that knows nothing.
func (w *world) startSender() {
	if w.stop != nil {
		w.stop()
	}
	o := w.sopts
	o.Open = func(ctx context.Context, peer string, d atelier.Digest) (Blob, error) { return w.open(ctx, peer, d) }
	o.Send = func(_ string, f []byte) error { return w.down.send(f) }
	if w.differ != nil {
		o.Difference = func(_ context.Context, _ string, o Offer) (*Difference, *Pending) { return w.differ(o) }
	}
	s := NewSender(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sender = s
	w.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
		w.stop = func() {}
	}
}

func fileOf(c []byte) atelier.File {
	return atelier.File{Path: "model.onnx", Digest: atelier.DigestOf(c), Size: int64(len(c))}
}

// fetch fetches c within an hour, and checks that it is there.
func (w *world) fetch(c []byte) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Hour)
	defer cancel()
	_, err := w.recv.Fetch(ctx, fileOf(c), nil, nil)
	w.check(c, err == nil)
	return err
}

// fetchOn fetches c with bases to offer, and checks that it is there.
func (w *world) fetchOn(c []byte, bases ...[]byte) (Arrival, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Hour)
	defer cancel()
	offered := []atelier.Digest{}
	for _, b := range bases {
		offered = append(offered, atelier.DigestOf(b))
	}
	w.mu.Lock()
	r := w.recv
	w.mu.Unlock()
	a, err := r.Fetch(ctx, fileOf(c), offered, nil)
	w.check(c, err == nil)
	return a, err
}

// hold puts c into the receiver's store.
func (w *world) hold(c []byte) {
	w.t.Helper()
	hold(w.t, w.store, c)
}

func hold(t *testing.T, s *content.Store, c []byte) {
	t.Helper()
	in, err := s.Writer("")
	if err == nil {
		_, err = in.Write(c)
	}
	if err == nil {
		_, err = in.Commit(atelier.DigestOf(c), int64(len(c)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// room leaves so many bytes free on the receiver's disk.
func (w *world) room(bytes int) {
	w.t.Helper()
	const all = 1 << 40
	w.disk.SetSpace(all)
	free, err := w.disk.Free("/content")
	if err != nil {
		w.t.Fatal(err)
	}
	w.disk.SetSpace(all - free + int64(bytes))
}

// nothingElse fails the test where anything but blobs is left in the store.
func (w *world) nothingElse() {
	w.t.Helper()
	left, err := w.disk.ReadDir("/content/ingest")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range left {
		w.t.Errorf("%s is left", e.Name())
	}
}

// check fails the test where content is visible that is wrong, or is not there
// although it should be.
func (w *world) check(c []byte, want bool) {
	w.t.Helper()
	b, err := w.store.Open(atelier.DigestOf(c))
	if atelier.CodeOf(err) == atelier.NotFound {
		if want {
			w.t.Fatal("Fetch said that the content is there, and it is not")
		}
		return
	}
	if err != nil {
		w.t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err := errors.Join(err, b.Close()); err != nil {
		w.t.Fatal(err)
	}
	if !bytes.Equal(got, c) {
		w.t.Fatal("wrong content is visible")
	}
}

func sample(n int, seed uint64) []byte {
	var key [32]byte
	key[0] = byte(seed)
	b := make([]byte, n)
	r := rand.NewChaCha8(key)
	if _, err := r.Read(b); err != nil {
		panic(err)
	}
	return b
}

func wantCode(t testing.TB, err error, code atelier.Code) {
	t.Helper()
	if atelier.CodeOf(err) != code {
		t.Fatalf("got error %v, want code %q", err, code)
	}
}
