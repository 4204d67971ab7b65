package wire_test

import (
	"bytes"
	"compress/flate"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// envelope is one as internal/trust makes them; the signature is none.
func envelope(t testing.TB, payloadType string, payload []byte) []byte {
	t.Helper()
	b, err := json.Marshal(struct {
		Payload     []byte              `json:"payload"`
		PayloadType string              `json:"payloadType"`
		Signatures  []map[string]string `json:"signatures"`
	}{payload, payloadType, []map[string]string{{"keyid": strings.Repeat("5a", 32), "sig": strings.Repeat("q8", 43) + "=="}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Every message of the golden file comes back as it was, and a desired state as less
// than half of its bytes.
func TestPackedMessagesComeBack(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("testdata", "messages.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden map[string]json.RawMessage
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	for name, payload := range golden {
		var compact bytes.Buffer
		if err := json.Compact(&compact, payload); err != nil {
			t.Fatal(err)
		}
		plain := envelope(t, name, compact.Bytes())
		packed := wire.Pack(plain)
		if name == wire.TypeDesired && len(packed) > len(plain)/2 {
			t.Errorf("a desired state of %d bytes is packed into %d", len(plain), len(packed))
		}
		got, err := wire.Unpack(packed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s came back as %.200q, %v", name, got, err)
		}
	}
}

// What cannot be packed, or grows by it, stays as it is.
func TestPackLeavesTheRest(t *testing.T) {
	t.Parallel()
	noise := make([]byte, wire.MaxPacket)
	_, _ = rand.Read(noise)
	for _, message := range []string{
		"", "{}", `{"payload":"`, `{"payload":"e30`, `{"payload":"e30","x":1}`, `{"payload":"e3 0=","x":1}`, `{"payload":"e31=","x":1}`,
		`{"payloadType":"a","payload":"e30="}`, `{"payload":"` + strings.Repeat("e30K", wire.MaxPacket/4) + `"}`, string(noise),
	} {
		if got := wire.Pack([]byte(message)); string(got) != message {
			t.Errorf("%.80q was packed as %.80q", message, got)
		}
	}
}

// The form is that of messages of before: it is read now and ever.
func TestPackedGolden(t *testing.T) {
	t.Parallel()
	path := filepath.Join("testdata", "packed.hex")
	plain := envelope(t, wire.TypeAck, []byte(`{"session":"01m8agqa51k1s5zb7hbvw9mg1x","stream":"report","through":7}`))
	if *updateMessages {
		if err := os.WriteFile(path, []byte(hex.EncodeToString(wire.Pack(plain))+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := wire.Unpack(packed); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("it is read as %q, %v", got, err)
	}
}

func TestUnpackIsBounded(t *testing.T) {
	t.Parallel()
	bomb := func(length []byte, n int) []byte {
		var b bytes.Buffer
		b.WriteByte(1)
		w, err := flate.NewWriter(&b, flate.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range [][]byte{length, bytes.Repeat([]byte{' '}, n)} {
			if _, err := w.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for name, message := range map[string][]byte{
		"empty":                   {1},
		"no deflate":              {1, 0xff, 0xff, 0xff},
		"truncated":               bomb([]byte{0}, 1000)[:10],
		"a length beyond the end": bomb([]byte{0xff, 0xff, 3}, 10),
		"a length without an end": bomb(bytes.Repeat([]byte{0xff}, 12), 10),
		"a tail of 2 MB":          bomb([]byte{0}, 2<<20),
		"a payload too large":     bomb([]byte{0x80, 0xc0, 7}, 122_880),
	} {
		if got, err := wire.Unpack(message); atelier.CodeOf(err) != atelier.Corrupt {
			t.Errorf("%s: got %d bytes, %v", name, len(got), err)
		}
	}
}

// FuzzUnpack unpacks anything: what comes out is bounded, and packs to what unpacks to
// the same.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte("{}"))
	f.Add(wire.Pack(envelope(f, wire.TypeAck, []byte(`{"stream":"report","through":7}`))))
	f.Add([]byte{1, 1, 0, 0, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, message []byte) {
		got, err := wire.Unpack(message)
		if err != nil {
			if atelier.CodeOf(err) != atelier.Corrupt {
				t.Errorf("the error is %v", err)
			}
			return
		}
		if len(got) > max(len(message), wire.MaxPacket) {
			t.Errorf("%d bytes became %d", len(message), len(got))
		}
		if len(got) > 0 && got[0] == 1 {
			return // was not packed, and cannot be told from what is
		}
		again, err := wire.Unpack(wire.Pack(got))
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("%q comes back as %q, %v", got, again, err)
		}
	})
}
