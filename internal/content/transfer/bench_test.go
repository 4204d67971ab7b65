package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
)

// BenchmarkFetch moves 256 MiB from one store to another on real disks, both
// halves in this process, frames handed over by a channel.
func BenchmarkFetch(b *testing.B) {
	const size = 256 << 20
	from, err := content.Open(durable.OS{}, b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	w, err := from.Writer("")
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.CopyN(w, rand.NewChaCha8([32]byte{}), size); err != nil {
		b.Fatal(err)
	}
	info, err := w.Commit("", size)
	if err != nil {
		b.Fatal(err)
	}
	to, err := content.Open(durable.OS{}, b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	frames := make(chan []byte, 8)
	s := NewSender(SenderOptions{
		Open: func(_ context.Context, _ string, d atelier.Digest) (Blob, error) { return from.Open(d) },
		Send: func(_ string, f []byte) error {
			select {
			case frames <- f:
			case <-ctx.Done():
			}
			return nil
		},
	})
	r := NewReceiver(to, func(f []byte) error { s.Handle("device", f); return nil }, ReceiverOptions{})
	ended := make(chan error, 2)
	go func() { ended <- s.Run(ctx) }()
	go func() {
		for {
			select {
			case f := <-frames:
				r.Handle(f)
			case <-ctx.Done():
				ended <- nil
				return
			}
		}
	}()
	defer func() {
		cancel()
		if err := errors.Join(<-ended, <-ended); err != nil {
			b.Fatal(err)
		}
	}()
	file := atelier.File{Digest: info.Digest, Size: size}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Fetch(ctx, file, nil, nil); err != nil {
			b.Fatal(err)
		}
		if err := to.Delete(info.Digest); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPlan reads content through to plan its transfer.
func BenchmarkPlan(b *testing.B) {
	c := sample(64<<20, 1)
	d := atelier.DigestOf(c)
	blob := memory{bytes.NewReader(c)}
	b.SetBytes(int64(len(c)))
	for b.Loop() {
		if _, err := makePlan(b.Context(), planKey{d, wayWhole, smallestChunk}, blob); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSendToMany sends 64 MiB from a real disk to peers that pull them at the
// same time, frames dropped by the connection: what reading and encoding cost.
func BenchmarkSendToMany(b *testing.B) {
	const size = 64 << 20
	store, err := content.Open(durable.OS{}, b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	w, err := store.Writer("")
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.CopyN(w, rand.NewChaCha8([32]byte{}), size); err != nil {
		b.Fatal(err)
	}
	info, err := w.Commit("", size)
	if err != nil {
		b.Fatal(err)
	}
	for _, cache := range []int64{0, 64 << 20} {
		for _, peers := range []int{1, 20} {
			b.Run(fmt.Sprintf("cache=%dMiB/peers=%d", cache>>20, peers), func(b *testing.B) { sendToMany(b, store, info, cache, peers) })
		}
	}
}

func sendToMany(b *testing.B, store *content.Store, info content.Info, cache int64, peers int) {
	ctx, cancel := context.WithCancel(b.Context())
	planned, sent := make(chan string, peers), make(chan struct{}, peers)
	s := NewSender(SenderOptions{
		Cache: cache, Window: info.Size,
		Open: func(_ context.Context, _ string, d atelier.Digest) (Blob, error) { return store.Open(d) },
		Send: func(peer string, f []byte) error {
			switch k, _, body, _ := unseal(f, DefaultMaxFrame); k {
			case kindPlan:
				planned <- peer
			case kindData:
				if d, _ := decodeData(body); d.sent == info.Size {
					sent <- struct{}{}
				}
			}
			return nil
		},
	})
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
	}()
	open, err := encodeOpen(1, openFrame{digest: info.Digest, maxFrame: DefaultMaxFrame, ways: []way{wayWhole}})
	if err != nil {
		b.Fatal(err)
	}
	for i := range peers {
		s.Handle(fmt.Sprint(i), open)
	}
	var names []string
	for range peers {
		names = append(names, <-planned)
	}
	b.SetBytes(info.Size * int64(peers))
	b.ReportAllocs()
	round := uint32(0)
	for b.Loop() {
		round++
		want := encodeWant(1, wantFrame{round: round, credit: info.Size, ranges: content.Ranges{{End: info.Size}}})
		for _, peer := range names {
			s.Handle(peer, want)
		}
		for range peers {
			<-sent
		}
	}
}
