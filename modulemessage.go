package atelier

import (
	"encoding/json"
	"time"
)

// ModuleMessage is a message that a module of a device sent into the workspace. Its
// payload is in JSON where it is JSON, in Text where it is other text, and in Base64 otherwise.
type ModuleMessage struct {
	ID          string            `json:"id"`     // grows along the messages of a device; what comes after it is asked for by it
	Device      string            `json:"device"` // name
	Module      string            `json:"module"`
	Output      string            `json:"output"`
	Time        time.Time         `json:"time"`     // by the device's clock
	Received    time.Time         `json:"received"` // by the hub's
	ContentType string            `json:"content_type,omitempty"`
	Properties  []MessageProperty `json:"properties,omitempty"`
	JSON        json.RawMessage   `json:"json,omitempty"`
	Text        string            `json:"text,omitempty"`
	Base64      []byte            `json:"base64,omitempty"`
}

// MessageProperty is a property that a module gave a message.
type MessageProperty struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}
