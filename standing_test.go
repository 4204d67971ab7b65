package atelier

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

func TestStatesKeepTheirReasonsOnTheWire(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	full := Because(ReasonNoSpace, "812 MB are needed")
	holds, fails := Holds(ConditionGateway, full).Following(Condition{}, since), Fails(ConditionGateway, full)
	for want, v := range map[string]any{
		`{"rollout":"r","model":"m","version":2,"digest":"","since":"2026-11-25T12:00:00Z","state":"BackOff","why":{"reason":"NoSpace","message":"812 MB are needed","remedy":"` + full.Remedy() + `"}}`:                         &SlotStatus{Rollout: "r", Model: "m", Version: 2, Since: since, Standing: Stand(BackOff, full)},
		`{"rollout":"","model":"","version":0,"digest":"","since":"0001-01-01T00:00:00Z","state":"Pending","why":{"reason":"InProgress","message":"It is being worked on."}}`:                                                    &SlotStatus{},
		`{"device":"d","device_name":"","connected":false,"wanted":3,"fetched_bytes":0,"size_bytes":0,"restarts":0,"state":"Refused","why":{"reason":"NoSpace","message":"812 MB are needed","remedy":"` + full.Remedy() + `"}}`: &DeviceStatus{Device: "d", Wanted: 3, Standing: Stand(Refused, full)},
		`{"type":"Gateway","true":true,"why":{"reason":"NoSpace","message":"812 MB are needed","remedy":"` + full.Remedy() + `"},"since":"2026-11-25T12:00:00Z"}`:                                                                &holds,
		`{"type":"Gateway","true":false,"why":{"reason":"NoSpace","message":"812 MB are needed","remedy":"` + full.Remedy() + `"},"since":"0001-01-01T00:00:00Z"}`:                                                               &fails,
	} {
		b, err := json.Marshal(v)
		if err != nil || string(b) != want {
			t.Errorf("got  %s, %v\nwant %s", b, err, want)
		}
		back := reflect.New(reflect.TypeOf(v).Elem())
		if err := json.Unmarshal(b, back.Interface()); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(back.Interface())
		if err != nil || string(again) != want {
			t.Errorf("read back: %s, %v", again, err)
		}
	}
}

func TestAConditionRemembersSinceWhen(t *testing.T) {
	t.Parallel()
	why, at := Because(ReasonWaiting, ""), time.Unix(1000, 0)
	first := Holds(ConditionInSync, why).Following(Condition{}, at)
	if again := Holds(ConditionInSync, why).Following(first, at.Add(time.Hour)); !again.Since().Equal(at) {
		t.Errorf("it holds since %v, it began at %v", again.Since(), at)
	}
	if fell := Fails(ConditionInSync, why).Following(first, at.Add(time.Hour)); !fell.Since().Equal(at.Add(time.Hour)) {
		t.Errorf("it fails since %v", fell.Since())
	}
}
