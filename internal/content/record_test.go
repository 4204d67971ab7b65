package content

import (
	"crypto/sha256"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func goodRecord() ([]byte, sum) {
	digest := sha256.Sum256([]byte("x"))
	b := appendHeader(nil, digest, 1000)
	b = appendEntry(b, digest, Range{0, 100})
	b = appendEntry(b, digest, Range{500, 1000})
	return b, digest
}

func TestRecordStopsAtATornEntry(t *testing.T) {
	t.Parallel()
	b, digest := goodRecord()
	for cut := range len(b) {
		done, good := decodeRecord(b[:cut], digest, 1000)
		if good > cut || good != 0 && (good-recordHeader)%recordEntry != 0 || len(done) != max(0, (cut-recordHeader)/recordEntry) {
			t.Fatalf("cut at %d: %v, %d", cut, done, good)
		}
		if cut == 0 {
			continue
		}
		bad := append([]byte(nil), b...)
		bad[cut] ^= 1
		if done, _ := decodeRecord(bad, digest, 1000); done.Bytes() == 600 {
			t.Fatalf("a changed byte at %d was not noticed", cut)
		}
	}
	if done, _ := decodeRecord(b, sha256.Sum256([]byte("y")), 1000); done != nil {
		t.Fatal("the record of other content was taken")
	}
}

func FuzzDecodeRecord(f *testing.F) {
	b, digest := goodRecord()
	f.Add(b, int64(1000))
	f.Add(b[:recordHeader], int64(1000))
	f.Add(b[:len(b)-7], int64(1000))
	f.Add(append(b, make([]byte, recordEntry)...), int64(1000))
	f.Add([]byte{}, int64(0))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		done, good := decodeRecord(b, digest, size)
		if good > len(b) {
			t.Fatalf("%d of %d bytes are good", good, len(b))
		}
		last := int64(-1)
		for _, r := range done {
			if r.Start <= last || r.End <= r.Start || r.End > size {
				t.Fatalf("claims %v of %d bytes", done, size)
			}
			last = r.End
		}
	})
}

func FuzzDecodeUpload(f *testing.F) {
	h := sha256.New()
	h.Write([]byte("content"))
	b, err := encodeUpload(7, h)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add([]byte(uploadMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		at, h, ok := decodeUpload(b)
		if !ok {
			return
		}
		if again, err := encodeUpload(at, h); err != nil || string(again) != string(b) {
			t.Fatalf("%x came back as %x, %v", b, again, err)
		}
	})
}

func TestUploadRecordKeepsTheHash(t *testing.T) {
	t.Parallel()
	h := sha256.New()
	h.Write([]byte("con"))
	b, err := encodeUpload(3, h)
	if err != nil {
		t.Fatal(err)
	}
	at, h2, ok := decodeUpload(b)
	if !ok || at != 3 {
		t.Fatalf("got %d, %v", at, ok)
	}
	h2.Write([]byte("tent"))
	if got, want := atelier.DigestFrom(h2), atelier.DigestOf([]byte("content")); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
}
