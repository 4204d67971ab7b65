package wire_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

var updateMessages = flag.Bool("update-messages", false, "add the messages that the golden file lacks")

// messages are all that hub and device, agent and gateway say to each other as JSON.
var messages = map[string]any{
	wire.TypeHello: wire.Hello{}, wire.TypeWelcome: wire.Welcome{}, wire.TypeDesired: atelier.DesiredState{},
	wire.TypeDesiredAck: wire.DesiredAck{}, wire.TypeReported: atelier.ReportedState{}, wire.TypeAck: wire.Ack{},
	wire.TypeTrust: wire.Trust{}, wire.TypeRevoked: wire.Revoked{}, wire.TypeBye: wire.Bye{},
	wire.TypeCollect: wire.Collect{}, wire.TypeCollected: wire.Collected{}, wire.TypeRenewProof: wire.RenewProof{},
	"POST /v1/enrol": wire.EnrolRequest{}, "POST /v1/enrol 200": wire.Enrolment{},
	"POST /v1/renew/challenge": wire.ChallengeRequest{}, "POST /v1/renew/challenge 200": wire.Challenge{},
	"POST /v1/renew": wire.RenewRequest{}, "POST /v1/renew 200": wire.Renewal{},
	"gateway PUT /routes": atelier.RouteTable{}, "gateway GET /status 200": atelier.GatewayStatus{},
}

// Messages of a version that is out there are in the golden file, every field
// set. What is in it must be read now and ever: a field may be added, none may
// go or mean something else. A new message is added with -update-messages.
func TestMessagesGolden(t *testing.T) {
	t.Parallel()
	path := filepath.Join("testdata", "messages.json")
	b, err := os.ReadFile(path)
	if err != nil && !*updateMessages {
		t.Fatal(err)
	}
	golden := map[string]json.RawMessage{}
	if err == nil {
		if err := json.Unmarshal(b, &golden); err != nil {
			t.Fatal(err)
		}
	}
	if *updateMessages {
		for name, zero := range messages {
			if golden[name] == nil {
				v := reflect.New(reflect.TypeOf(zero)).Elem()
				fill(t, v, name)
				golden[name] = encode(t, v.Interface())
			}
		}
		if err := os.WriteFile(path, append(indent(t, encode(t, golden)), '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, zero := range messages {
		if golden[name] == nil {
			t.Errorf("%s is not in %s; add it with -update-messages", name, path)
			continue
		}
		v := reflect.New(reflect.TypeOf(zero))
		if err := json.Unmarshal(golden[name], v.Interface()); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var was, is any
		if err := json.Unmarshal(golden[name], &was); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(encode(t, v.Interface()), &is); err != nil {
			t.Fatal(err)
		}
		if where := lost(was, is); where != "" {
			t.Errorf("%s is not read as it was: %s%s", name, name, where)
		}
	}
	for name := range golden {
		if messages[name] == nil {
			t.Errorf("%s of the golden file is no message any more", name)
		}
	}
}

// lost returns where is lacks or changed something of was, "" where it does not.
func lost(was, is any) string {
	switch was := was.(type) {
	case map[string]any:
		now, ok := is.(map[string]any)
		if !ok {
			return " is no object"
		}
		for k, v := range was {
			if where := lost(v, now[k]); where != "" {
				return "." + k + where
			}
		}
	case []any:
		now, ok := is.([]any)
		if !ok || len(now) != len(was) {
			return " is another list"
		}
		for i := range was {
			if where := lost(was[i], now[i]); where != "" {
				return "[]" + where
			}
		}
	default:
		if was != is {
			return " has another value"
		}
	}
	return ""
}

// fill sets every field of v to something.
func fill(t *testing.T, v reflect.Value, name string) {
	t.Helper()
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)))
		return
	case atelier.Why:
		v.Set(reflect.ValueOf(atelier.Because(atelier.ReasonNoSpace, "the disk is full")))
		return
	case atelier.Condition:
		v.Set(reflect.ValueOf(atelier.Fails(atelier.ConditionGateway, atelier.Because(atelier.ReasonGatewayDown, "it does not answer"))))
		return
	case wire.Raw:
		v.Set(reflect.ValueOf(wire.Raw(`{"payload":"e30=","payloadType":"x","signatures":[]}`)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(name)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(len(name)))
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(uint64(len(name)))
	case reflect.Float64:
		v.SetFloat(0.5)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), name)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0), name)
	case reflect.Map:
		value := reflect.New(v.Type().Elem()).Elem()
		fill(t, value, name)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key").Convert(v.Type().Key()), value)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), v.Type().Field(i).Name)
		}
	default:
		t.Fatalf("%s is of kind %s, which the test cannot fill", name, v.Kind())
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func indent(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", " "); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
