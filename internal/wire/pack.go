package wire

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/binary"
	"io"
	"sync"

	atelier "github.com/atelier-edge/atelier"
)

// A control message may come packed to agents that list FeaturePacked: an envelope
// whose payload is not base64, compressed. A desired state is a third of its size
// then, and a small change to a model mostly desired state.
//
//	packed (1), raw deflate of: length of the payload (uvarint), payload, what follows it in the envelope
//
// JSON begins with neither, so that the first byte tells. Unpack brings back the very
// bytes that were packed, and what they say is verified as ever.
const packed = 1

const (
	envelopeHead = `{"payload":"` // what trust.Sign begins with
	// maxUnpacked bounds what a packed message may grow to.
	maxUnpacked = MaxPacket
)

// packDictionary is what messages commonly hold, the most common last. It is part of
// the form: another one needs another first byte.
const packDictionary = `{"session":"","position":{"epoch":,"generation":},"time":"","telemetry":{"` +
	`{"workspace":"01","device":"01","epoch":1,"generation":1,"issued":"2026-01-01T00:00:00.000Z","modules":[{"deployment":"01","name":"","rollout":"01",` +
	`"target":"process","package":"sha256:","model":{"name":"","version":1,"digest":"sha256:","variant":{"kind":"onnx","entry":"model.onnx",` +
	`"files":[{"path":"model.onnx","digest":"sha256:","size":1},{"path":"","digest":"sha256:","size":1}],"requires":{"runtime":"onnxruntime"}}},` +
	`"runtime":{"name":"onnxruntime","version":"1.","entry":"libonnxruntime.so","files":[{"path":"libonnxruntime.so","digest":"sha256:","size":}]},` +
	`"limits":{"memory_bytes":},"endpoint":{"name":"","keys":{"primary":"","secondary":""}}}],"staged":[{` +
	`{"session":"01","stream":"report","through":1}` +
	`","payloadType":"application/vnd.atelier.welcome.v1+json` +
	`","payloadType":"application/vnd.atelier.ack.v1+json","signatures":[{"keyid":"` +
	`","payloadType":"application/vnd.atelier.desired.v1+json","signatures":[{"keyid":"","sig":"=="}]}`

var packers = sync.Pool{New: func() any {
	w, err := flate.NewWriterDict(io.Discard, flate.BestCompression, []byte(packDictionary))
	if err != nil {
		panic(err) // the level is one that there is
	}
	return w
}}

// Pack returns the packed form of an envelope, or the envelope where that would be no
// smaller, or is not defined.
func Pack(envelope []byte) []byte {
	if len(envelope) > maxUnpacked || !bytes.HasPrefix(envelope, []byte(envelopeHead)) {
		return envelope
	}
	encoded, tail, ok := bytes.Cut(envelope[len(envelopeHead):], []byte{'"'})
	if !ok {
		return envelope
	}
	payload, err := base64.StdEncoding.AppendDecode(nil, encoded)
	if err != nil || base64.StdEncoding.EncodeToString(payload) != string(encoded) {
		return envelope
	}
	var out bytes.Buffer
	out.WriteByte(packed)
	w := packers.Get().(*flate.Writer)
	defer packers.Put(w)
	w.Reset(&out)
	for _, part := range [][]byte{binary.AppendUvarint(nil, uint64(len(payload))), payload, tail} {
		if _, err := w.Write(part); err != nil {
			return envelope
		}
	}
	if err := w.Close(); err != nil || out.Len() >= len(envelope) {
		return envelope
	}
	return out.Bytes()
}

// Unpack returns the envelope that came as message, packed or not. Of a packed one
// nothing is believed: no more than MaxPacket is unpacked, whatever it says. The error
// is Corrupt.
func Unpack(message []byte) ([]byte, error) {
	if len(message) == 0 || message[0] != packed {
		return message, nil
	}
	r := flate.NewReaderDict(bytes.NewReader(message[1:]), []byte(packDictionary))
	plain, err := io.ReadAll(io.LimitReader(r, maxUnpacked+1))
	if err != nil {
		return nil, atelier.Errorf(atelier.Corrupt, "a packed message of %d bytes cannot be unpacked: %w", len(message), err)
	}
	size, n := binary.Uvarint(plain)
	if n <= 0 || size > uint64(len(plain)-n) {
		return nil, atelier.Errorf(atelier.Corrupt, "a packed message of %d bytes holds no payload of the length that it names", len(message))
	}
	payload, tail := plain[n:n+int(size)], plain[n+int(size):]
	if length := len(envelopeHead) + base64.StdEncoding.EncodedLen(len(payload)) + 1 + len(tail); length > maxUnpacked {
		return nil, atelier.Errorf(atelier.Corrupt, "a packed message of %d bytes grows beyond the %d that a message may have", len(message), maxUnpacked)
	}
	envelope := base64.StdEncoding.AppendEncode([]byte(envelopeHead), payload)
	return append(append(envelope, '"'), tail...), nil
}
