package wire_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// FuzzTopic holds the access rules against what the two patterns of MQTT mean.
func FuzzTopic(f *testing.F) {
	const device = "01jz0000000000000000000001"
	for _, s := range []string{
		wire.UpTopic("0", device, wire.Control), wire.DownPattern(device), wire.DownTopic(device, wire.Content), "at1/d/#", "at1/d/+/ctl",
		"$share/g/" + wire.DownPattern(device), "$SYS/#", "at1/u/0/" + device + "/ctl/", "at1/d/" + device + "/#", "at1/u//" + device + "/tel",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		parts := strings.Split(topic, "/")
		up := len(parts) == 5 && parts[0] == "at1" && parts[1] == "u" && parts[3] == device
		down := len(parts) == 4 && parts[0] == "at1" && parts[1] == "d" && parts[2] == device
		if wire.MayPublish(device, topic) && !up {
			t.Errorf("%q may be published to", topic)
		}
		if wire.MaySubscribe(device, topic) && (!down || strings.ContainsAny(topic, "#$") || strings.Contains(topic, "+") && parts[3] != "+") {
			t.Errorf("%q may be subscribed to", topic)
		}
		if shard, d, c, ok := wire.ParseUp(topic); ok && wire.UpTopic(shard, d, c) != topic {
			t.Errorf("%q reads as shard %q, device %q, channel %q", topic, shard, d, c)
		}
		if d, c, ok := wire.ParseDown(topic); ok && (wire.DownTopic(d, c) != topic || !atelier.IsID(d)) {
			t.Errorf("%q reads as device %q, channel %q", topic, d, c)
		}
	})
}

// FuzzMessage reads a payload as every message there is: what was read says the
// same when it is written and read once more.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"session":"s","position":{"epoch":1,"generation":2},"agent":"1","facts":{"os":"linux"},"wall":"2026-01-02T03:04:05Z","monotonic":1}`))
	f.Add([]byte(`{"envelopes":[{"payload":"e30="},null]}`))
	f.Add([]byte(`{"id":"x","what":"module-log","max_bytes":-1,"ok":true,"why":{"reason":"NoSpace"}}`))
	f.Add([]byte(`{"token":"atj_x","csr":"AAAA","labels":{"a":"b"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		same[wire.Hello](t, b)
		same[wire.Welcome](t, b)
		same[wire.DesiredAck](t, b)
		same[wire.Ack](t, b)
		same[wire.Trust](t, b)
		same[wire.Revoked](t, b)
		same[wire.Bye](t, b)
		same[wire.Collect](t, b)
		same[wire.Collected](t, b)
		same[wire.EnrolRequest](t, b)
		same[wire.Enrolment](t, b)
		same[wire.ChallengeRequest](t, b)
		same[wire.Challenge](t, b)
		same[wire.RenewProof](t, b)
		same[wire.RenewRequest](t, b)
		same[wire.Renewal](t, b)
	})
}

func same[T any](t *testing.T, b []byte) {
	var v, again T
	if json.Unmarshal(b, &v) != nil {
		return
	}
	first, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("%T was read and cannot be written: %v", v, err)
	}
	if err := json.Unmarshal(first, &again); err != nil {
		t.Fatalf("%T cannot be read back: %v\n%s", v, err, first)
	}
	if second, err := json.Marshal(again); err != nil || !bytes.Equal(first, second) {
		t.Fatalf("%T came back as another\n%s\n%s\n%v", v, first, second, err)
	}
}
