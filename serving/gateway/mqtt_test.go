package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	atelier "github.com/atelier-edge/atelier"
)

// mqttClient is an MQTT client and what it was told.
type mqttClient struct {
	paho.Client
	told chan paho.Message
	lost chan error
}

// mqtt connects a client of MQTT 3.1.1, which reads all answers of endpoint e.
func (d *device) mqtt(id, user, key string) (*mqttClient, error) {
	d.t.Helper()
	c := &mqttClient{told: make(chan paho.Message, 64), lost: make(chan error, 1)}
	c.Client = paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + d.addr).SetClientID(id).SetUsername(user).SetPassword(key).
		SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(20 * time.Second).
		SetConnectionLostHandler(func(_ paho.Client, err error) { c.lost <- err }).
		SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { c.told <- m }))
	d.t.Cleanup(func() { c.Disconnect(0) })
	if token := c.Connect(); token.Wait() && token.Error() != nil {
		return nil, token.Error()
	}
	if token := c.Subscribe("endpoints/e/answers/#", 1, nil); token.Wait() && token.Error() != nil {
		return nil, token.Error()
	}
	return c, nil
}

// next returns what comes next as "topic: body".
func (c *mqttClient) next(t *testing.T) string {
	t.Helper()
	select {
	case m := <-c.told:
		return m.Topic() + ": " + string(m.Payload())
	case <-time.After(20 * time.Second):
		t.Fatal("no answer came")
		return ""
	}
}

func (c *mqttClient) publish(t *testing.T, topic, body string) {
	t.Helper()
	if token := c.Publish(topic, 1, false, body); token.Wait() && token.Error() != nil {
		t.Fatal(token.Error())
	}
}

func TestMQTTAsksEndpoints(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	b, _ := d.module("a", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // what did not come is missed below
		_, _ = fmt.Fprintf(w, "%s %s %s", r.URL.Path, r.Header.Get("Content-Type"), body)
	})
	d.lead(b)
	for _, key := range []string{key, "other"} {
		c, err := d.mqtt("same id", "e", key)
		if err != nil {
			t.Fatal(err)
		}
		for topic, want := range map[string]string{
			"endpoints/e/score":           "endpoints/e/answers/score: /score application/json x",
			"endpoints/e/score/cam-1":     "endpoints/e/answers/score/cam-1: /score application/json x",
			"endpoints/e/infer":           "endpoints/e/answers/infer: /v2/models/m/infer application/json x",
			"endpoints/e/invocations/row": "endpoints/e/answers/invocations/row: /invocations application/json x",
		} {
			c.publish(t, topic, "x")
			if got := c.next(t); got != want {
				t.Errorf("%s: %q, want %q", topic, got, want)
			}
		}
		c.Disconnect(10)
	}
	until(t, "all are counted", func() bool {
		counters := d.Status().Counters[0]
		return counters.Requests["2xx"] == 8 && counters.InFlight == 0
	})
	for _, c := range []struct{ user, key string }{{"e", "wrong"}, {"e", ""}, {"x", key}, {"", key}, {"", ""}} {
		if _, err := d.mqtt("stranger", c.user, c.key); err == nil {
			t.Errorf("user %q was let in with the key %q", c.user, c.key)
		}
	}
}

func TestMQTTKeepsToItsEndpoint(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	var asked atomic.Int64
	b, _ := d.module("a", func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	d.lead(b)
	for _, topic := range []string{
		"#", "+/e/answers/#", "endpoints/#", "endpoints/+/answers/#", "endpoints/e/score", "endpoints/e/#", "endpoints/f/answers/#", "$SYS/#",
		"$share/g/endpoints/e/answers/#",
	} {
		c, err := d.mqtt("reader", "e", key)
		if err != nil {
			t.Fatal(err)
		}
		token := c.Subscribe(topic, 0, nil)
		if token.Wait() && token.Error() == nil {
			for _, code := range token.(*paho.SubscribeToken).Result() {
				if code < 0x80 {
					t.Errorf("%s was subscribed to", topic)
				}
			}
		}
		c.Disconnect(0)
	}
	for _, topic := range []string{"endpoints/f/score", "endpoints/e/answers/score", "endpoints/e", "endpoints/e/v2", "endpoints/e/score/", "endpoints/e/score/a/b", "x"} {
		c, err := d.mqtt("writer", "e", key)
		if err != nil {
			t.Fatal(err)
		}
		token := c.Publish(topic, 1, false, "x")
		select {
		case <-token.Done():
			if token.Error() == nil {
				t.Errorf("a message to %s was taken", topic)
			}
		case <-c.lost:
		}
		c.Disconnect(0)
	}
	c, err := d.mqtt("retainer", "e", key)
	if err != nil {
		t.Fatal(err)
	}
	c.Publish("endpoints/e/score", 0, true, "x")
	<-c.lost
	if n := asked.Load(); n != 0 {
		t.Errorf("the module was asked %d times", n)
	}
}

// A client whose key goes away loses its connection, others keep theirs.
func TestMQTTEndsWithTheKey(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	b, _ := d.module("a", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "yes") })
	d.lead(b)
	gone, err := d.mqtt("gone", "e", "other")
	if err != nil {
		t.Fatal(err)
	}
	stays, err := d.mqtt("stays", "e", key)
	if err != nil {
		t.Fatal(err)
	}
	d.seq++
	if err := d.Apply(atelier.RouteTable{Sequence: d.seq, Device: "dev", Routes: []atelier.Route{{
		Endpoint: "e", Keys: atelier.EndpointKeys{Primary: keyHash(key), Secondary: keyHash("new")}, Backend: b,
	}}}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone.lost:
	case <-time.After(20 * time.Second):
		t.Fatal("whose key went away is still connected")
	}
	stays.publish(t, "endpoints/e/score", "x")
	if got := stays.next(t); !strings.HasSuffix(got, "yes") {
		t.Error(got)
	}
}

// A client has a few requests in progress, and is told of those that are too many.
// What is in progress when the gateway ends is answered.
func TestMQTTBoundsAndDrains(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	let := make(chan struct{})
	var asked atomic.Int64
	b, _ := d.module("a", func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		<-let
		_, _ = io.WriteString(w, "yes")
	})
	d.lead(b)
	c, err := d.mqtt("eager", "e", key)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		c.publish(t, fmt.Sprintf("endpoints/e/score/%d", i), "x")
	}
	got := c.next(t)
	topic, body, _ := strings.Cut(got, ": ")
	var p problem
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.Status != http.StatusTooManyRequests || p.Code != atelier.Exhausted || p.Remedy == "" || topic != "endpoints/e/answers/score/4" {
		t.Fatalf("%s: %v", got, err)
	}
	until(t, "the module has them", func() bool { return asked.Load() == 4 })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.mqttEnd()
	}()
	close(let)
	for range 4 {
		if got := c.next(t); !strings.HasSuffix(got, ": yes") {
			t.Error(got)
		}
	}
	<-ended
	<-c.lost
	if _, err := d.mqtt("late", "e", key); err == nil {
		t.Error("a client was served at the end")
	}
}

// mqttEnd ends the MQTT side as drain does.
func (d *device) mqttEnd() { d.Gateway.mqtt.end(20 * time.Second) }

// A module that is away is told of as over HTTP.
func TestMQTTTellsErrors(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	b, server := d.module("a", func(http.ResponseWriter, *http.Request) {})
	d.lead(b)
	_ = server.Close()
	c, err := d.mqtt("c", "e", key)
	if err != nil {
		t.Fatal(err)
	}
	c.publish(t, "endpoints/e/score", "x")
	_, body, _ := strings.Cut(c.next(t), ": ")
	var p problem
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.Status != http.StatusServiceUnavailable || p.Code != atelier.Unavailable || p.Request == "" {
		t.Errorf("%s: %v", body, err)
	}
}

func TestMQTTStrangers(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	b, _ := d.module("a", func(http.ResponseWriter, *http.Request) {})
	d.lead(b)
	for name, bytes := range map[string][]byte{
		"a large first packet": {0x10, 0xff, 0xff, 0xff, 0x7f},
		"a length of no end":   {0x10, 0xff, 0xff, 0xff, 0xff, 0xff},
		"no CONNECT":           {0x10, 2, 0, 0},
	} {
		conn, err := net.Dial("tcp", d.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(bytes); err != nil {
			t.Error(name, err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := conn.Read(make([]byte, 100)); n != 0 || os.IsTimeout(err) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		_ = conn.Close()
	}
}

// Mosquitto's own client of MQTT 5 asks with a response topic and correlation data.
func TestMosquittoAsks(t *testing.T) {
	t.Parallel()
	rr, err := exec.LookPath("mosquitto_rr")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("mosquitto_rr is missing; scripts/install-test-tools installs it")
		}
		t.Skip("mosquitto_rr is missing")
	}
	d := newDevice(t, Options{})
	b, _ := d.module("a", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/x-answer")
		_, _ = io.Copy(w, io.MultiReader(strings.NewReader(r.Header.Get("Inference-Header-Content-Length")+r.Header.Get("Content-Type")+" "), r.Body))
	})
	d.lead(b)
	host, port, err := net.SplitHostPort(d.addr)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(response string, more ...string) string {
		cmd := exec.CommandContext(t.Context(), rr, append([]string{
			"-V", "5", "-h", host, "-p", port, "-u", "e", "-P", key, "-t", "endpoints/e/infer", "-e", response, "-m", "body", "-W", "20",
			"-F", "%t|%C|%D|%P|%p",
		}, more...)...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%v: %s%s", err, out, errs.String())
		}
		return strings.TrimSpace(string(out))
	}
	got := ask("endpoints/e/answers/mine", "-D", "publish", "correlation-data", "c1", "-D", "publish", "content-type", "application/octet-stream",
		"-D", "publish", "user-property", "inference-header-content-length", "4")
	if !strings.HasPrefix(got, "endpoints/e/answers/mine|text/x-answer|c1|status:200 x-atelier-request-id:rollout-a-") || !strings.HasSuffix(got, "|4application/octet-stream body") {
		t.Errorf("the answer is %q", got)
	}
}
