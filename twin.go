package atelier

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"time"
)

// Twin are the desired properties of a module, for all devices of its deployment or for
// one, and what a device's module reports.
type Twin struct {
	Deployment string `json:"deployment"` // name
	Device     string `json:"device,omitempty"`
	// Version of the desired properties; it grows with each change. Of a device it is that of
	// what the device gets: the deployment's properties with its own merged in.
	Version  int64           `json:"version"`
	Desired  json.RawMessage `json:"desired"`
	Updated  time.Time       `json:"updated,omitzero"`
	Reported *ReportedTwin   `json:"reported,omitempty"` // of a device
}

// ReportedTwin is what a module reports of itself.
type ReportedTwin struct {
	Version    uint64          `json:"version"` // counted by the device
	Properties json.RawMessage `json:"properties"`
	Time       time.Time       `json:"time"`     // by the device's clock
	Received   time.Time       `json:"received"` // by the hub's
}

// maxTwinDepth is how deep the objects of a twin may stand within each other.
const maxTwinDepth = 10

// MergePatch applies a JSON merge patch (RFC 7396) to properties: null takes a property
// away, objects are merged, all else replaces. Both must be objects; no properties are {}.
// The result has its keys in order, and at most MaxTwin bytes. Errors are Invalid or TooLarge.
func MergePatch(properties, patch json.RawMessage) (json.RawMessage, error) {
	if len(bytes.TrimSpace(properties)) == 0 {
		properties = json.RawMessage("{}")
	}
	to, err := readObject(properties)
	if err != nil {
		return nil, err
	}
	if len(patch) > 2*MaxTwin {
		return nil, Errorf(TooLarge, "the change has %d bytes, at most %d are taken", len(patch), 2*MaxTwin)
	}
	from, err := readObject(patch)
	if err != nil {
		return nil, err
	}
	merge(to, from)
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(to); err != nil {
		return nil, Errorf(Invalid, "the properties cannot be written: %w", err)
	}
	out := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(out) > MaxTwin {
		return nil, Errorf(TooLarge, "the properties would have %d bytes as JSON, at most %d are kept", len(out), MaxTwin).
			WithRemedy("Take properties away by setting them to null, or send what is large as a message.")
	}
	return out, nil
}

func merge(to, from map[string]any) {
	for k, v := range from {
		switch v := v.(type) {
		case nil:
			delete(to, k)
		case map[string]any:
			inner, ok := to[k].(map[string]any)
			if !ok {
				inner = map[string]any{}
				to[k] = inner
			}
			merge(inner, v)
		default:
			to[k] = v
		}
	}
}

// readObject reads a JSON object, numbers as they are written.
func readObject(b []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v map[string]any
	err := d.Decode(&v)
	if err == nil && v == nil {
		err = errors.New("null")
	}
	if err != nil {
		return nil, Errorf(Invalid, "the properties are no JSON object: %w", err).WithRemedy(`Send an object such as {"interval": 5, "mode": null}; null takes a property away.`)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, Errorf(Invalid, "something stands behind the JSON object of the properties")
	}
	if depth(v) > maxTwinDepth {
		return nil, Errorf(Invalid, "the properties' objects stand more than %d deep within each other", maxTwinDepth)
	}
	return v, nil
}

func depth(v any) (deepest int) {
	switch v := v.(type) {
	case map[string]any:
		for _, inner := range v {
			deepest = max(deepest, depth(inner))
		}
		return deepest + 1
	case []any:
		for _, inner := range v {
			deepest = max(deepest, depth(inner))
		}
		return deepest + 1
	}
	return 0
}
