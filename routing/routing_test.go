package routing

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// device is a router on a directory that stays when the router goes.
type device struct {
	testing.TB
	dir    string
	table  atelier.RoutingTable
	clock  func() wire.Clock
	router *Router
	end    func()
}

func hash(password string) string {
	sum := sha256.Sum256([]byte(password))
	return hex.EncodeToString(sum[:])
}

func newDevice(t testing.TB, routes ...string) *device {
	t.Helper()
	d := &device{TB: t, dir: t.TempDir(), table: atelier.RoutingTable{Device: atelier.NewID(), Listen: "127.0.0.1:0"}}
	for _, name := range []string{"a", "b", "c"} {
		d.table.Modules = append(d.table.Modules, atelier.RoutedModule{Name: name, Password: hash(name + "'s")})
	}
	for _, r := range routes {
		d.table.Routes = append(d.table.Routes, atelier.MessageRoute{Route: r})
	}
	d.start()
	t.Cleanup(func() { d.end() })
	return d
}

// start starts a router, as after a kill: the one before it was not asked to end well.
func (d *device) start() {
	d.Helper()
	r, err := Open(Options{Dir: d.dir, Clock: d.clock, Log: slog.New(slog.NewTextHandler(d.Output(), nil)), Times: Times{Upkeep: 20 * time.Millisecond, Retry: 10 * time.Millisecond, RetryMost: 100 * time.Millisecond}})
	if err != nil {
		d.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	d.router = r
	d.end = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			d.Error(err)
		}
	})
	d.apply()
	d.eventually("listen", func() bool { return r.Status().Listen != "" })
}

func (d *device) apply() {
	d.Helper()
	b, err := json.Marshal(d.table)
	if err == nil {
		err = d.router.Apply(b)
	}
	if err != nil {
		d.Fatal(err)
	}
}

func (d *device) eventually(what string, cond func() bool) {
	d.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.Fatalf("it never came to this: %s; %+v", what, d.router.Status())
		}
	}
}

func (d *device) queue(from, into string) atelier.RouterQueue {
	for _, q := range d.router.Status().Queues {
		if q.From == from && q.Into == into {
			return q
		}
	}
	return atelier.RouterQueue{}
}

// program is a module's program, with an unpatched client.
type program struct {
	*device
	paho.Client
	name string
	got  chan paho.Message
}

func (d *device) options(name, id string) *paho.ClientOptions {
	return paho.NewClientOptions().AddBroker("tcp://" + d.router.Status().Listen).SetClientID(id).SetUsername(name).SetPassword(name + "'s").
		SetAutoReconnect(false).SetConnectTimeout(20 * time.Second).SetOrderMatters(true)
}

func (d *device) module(name string, inputs ...string) *program {
	d.Helper()
	p := &program{device: d, name: name, got: make(chan paho.Message, 10000)}
	p.Client = paho.NewClient(d.options(name, name+strings.Join(inputs, "")))
	p.done(p.Connect())
	for _, input := range inputs {
		p.done(p.Subscribe("modules/"+name+"/"+input, 1, func(_ paho.Client, m paho.Message) { p.got <- m }))
	}
	d.Cleanup(func() { p.Disconnect(0) })
	return p
}

func (p *program) done(t paho.Token) {
	p.Helper()
	if !t.WaitTimeout(30 * time.Second) {
		p.Fatal("no answer")
	}
	if err := t.Error(); err != nil {
		p.Fatal(err)
	}
}

func (p *program) put(output, text string) {
	p.Helper()
	p.done(p.Publish("modules/"+p.name+"/outputs/"+output, 1, false, text))
}

func (p *program) expect(topic, text string) {
	p.Helper()
	select {
	case m := <-p.got:
		if m.Topic() != topic || string(m.Payload()) != text {
			p.Fatalf("%.100s came on %s, want %.100s on %s", m.Payload(), m.Topic(), text, topic)
		}
	case <-time.After(30 * time.Second):
		p.Fatalf("%s never came on %s; %+v", text, topic, p.router.Status())
	}
}

const aToB = "FROM /modules/a/outputs/x INTO /modules/b/inputs/y"

func TestMessagesReachWhereRoutesLead(t *testing.T) {
	t.Parallel()
	d := newDevice(t, aToB, "FROM /messages/modules/a/* INTO /modules/c/inputs/all", "FROM /modules/a/outputs/x INTO /modules/c/inputs/all")
	a, b, c := d.module("a"), d.module("b", "inputs/y"), d.module("c", "inputs/+")
	for i := range 20 {
		a.put("x", fmt.Sprint("x", i))
		a.put("z", fmt.Sprint("z", i))
	}
	for i := range 20 {
		b.expect("modules/b/inputs/y", fmt.Sprint("x", i))
		c.expect("modules/c/inputs/all", fmt.Sprint("x", i)) // once, although two routes lead there
		c.expect("modules/c/inputs/all", fmt.Sprint("z", i))
	}
	b.put("nowhere", "gone")
	d.eventually("all delivered", func() bool { return d.queue("a", "b").Pending == 0 && d.queue("a", "c").Pending == 0 })
	if q := d.queue("a", "c"); q.Taken != 40 || q.Delivered != 40 || q.Dropped+q.Expired != 0 {
		t.Errorf("%+v", q)
	}
	for _, m := range d.router.Status().Modules {
		if m.Name == "b" && m.Unrouted != 1 {
			t.Errorf("%+v", m)
		}
	}
	// A route that goes takes its queue along, once that is empty.
	d.table.Routes = nil
	d.apply()
	d.eventually("no queue left", func() bool { return len(d.router.Status().Queues) == 0 })
}

func TestMessagesWaitForAModuleThatIsDown(t *testing.T) {
	t.Parallel()
	d := newDevice(t, aToB)
	a := d.module("a")
	const all = 300
	for i := range all / 2 {
		a.put("x", fmt.Sprint(i))
	}
	d.end() // what was acknowledged is on disk
	d.start()
	a = d.module("a")
	for i := all / 2; i < all; i++ {
		a.put("x", fmt.Sprint(i))
	}
	// A reader that goes in the middle gets the rest when it is back.
	b := d.module("b", "inputs/y")
	for i := range 100 {
		b.expect("modules/b/inputs/y", fmt.Sprint(i))
	}
	b.Disconnect(0)
	b = d.module("b", "inputs/y")
	first := <-b.got
	var from int
	if _, err := fmt.Sscan(string(first.Payload()), &from); err != nil || from > 100 && len(b.got) == 0 {
		t.Logf("the first after the pause is %s", first.Payload())
	}
	for i := from + 1; i < all; i++ {
		b.expect("modules/b/inputs/y", fmt.Sprint(i))
	}
	d.eventually("all taken", func() bool { return d.queue("a", "b").Pending == 0 })
	// What was taken is not delivered again by a router that begins anew.
	b.Disconnect(0)
	d.end()
	d.start()
	b = d.module("b", "inputs/y")
	d.module("a").put("x", "new")
	b.expect("modules/b/inputs/y", "new")
}

func TestMessagesOutliveTheirTime(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	now := wire.Clock{BootID: "boot", Monotone: time.Hour, Wall: time.Now()}
	d := &device{TB: t, dir: t.TempDir(), table: atelier.RoutingTable{Device: atelier.NewID(), Listen: "127.0.0.1:0"}}
	d.clock = func() wire.Clock { mu.Lock(); defer mu.Unlock(); return now }
	for _, name := range []string{"a", "b"} {
		d.table.Modules = append(d.table.Modules, atelier.RoutedModule{Name: name, Password: hash(name + "'s")})
	}
	d.table.Routes = []atelier.MessageRoute{{Route: aToB, TTL: 60}, {Route: "FROM /* INTO upstream", TTL: 600}}
	d.start()
	defer func() { d.end() }()
	a := d.module("a")
	a.put("x", "old")
	mu.Lock()
	now.Wall = now.Wall.Add(-1000 * time.Hour) // a clock that is set back changes nothing
	now.Monotone += 59 * time.Second
	mu.Unlock()
	a.put("x", "young")
	mu.Lock()
	now.Monotone += 2 * time.Second
	mu.Unlock()
	d.eventually("the old one gone", func() bool { return d.queue("a", "b").Expired == 1 })
	if q := d.queue("a", ""); q.Pending != 2 || q.Expired != 0 {
		t.Errorf("the other route's time is its own: %+v", q)
	}
	b := d.module("b", "inputs/y")
	b.expect("modules/b/inputs/y", "young")
	mu.Lock()
	now.Monotone += time.Hour
	mu.Unlock()
	d.eventually("nothing waits for the workspace", func() bool { return d.queue("a", "").Expired == 2 && d.queue("a", "").Pending == 0 })
}

func TestAFullQueueGivesUpTheOldest(t *testing.T) {
	t.Parallel()
	d := newDevice(t, aToB, "FROM /modules/c/outputs/x INTO /modules/b/inputs/y")
	d.table.Queue = 1 << 20
	d.apply()
	a, c := d.module("a"), d.module("c")
	c.put("x", "of another module")
	large := strings.Repeat("x", wire.MaxMessagePayload-10)
	for i := range 30 {
		a.put("x", fmt.Sprintf("%08d%s", i, large))
	}
	q := d.queue("a", "b")
	if q.Dropped == 0 || q.Bytes > 1<<20 {
		t.Errorf("%+v", q)
	}
	b := d.module("b", "inputs/y")
	other := 0
	for i, next := 0, int(q.Dropped); i < 30-int(q.Dropped)+1; i++ {
		select {
		case m := <-b.got:
			if string(m.Payload()) == "of another module" {
				other++
				continue
			}
			if want := fmt.Sprintf("%08d", next); string(m.Payload()[:8]) != want {
				t.Fatalf("%s came, want %s", m.Payload()[:8], want)
			}
			next++
		case <-time.After(30 * time.Second):
			t.Fatalf("message %d never came", next)
		}
	}
	if other != 1 {
		t.Error("one module's flood took the message of another")
	}
}

func TestAModuleMayDoNothingElse(t *testing.T) {
	t.Parallel()
	d := newDevice(t, aToB)
	for name, change := range map[string]func(*paho.ClientOptions){
		"another's password": func(o *paho.ClientOptions) { o.SetUsername("b") },
		"no password":        func(o *paho.ClientOptions) { o.SetPassword("") },
		"a stranger":         func(o *paho.ClientOptions) { o.SetUsername("stranger") },
		"another's will":     func(o *paho.ClientOptions) { o.SetWill("modules/b/outputs/x", "x", 1, false) },
	} {
		o := d.options("a", "a")
		change(o)
		if token := paho.NewClient(o).Connect(); !token.WaitTimeout(30*time.Second) || token.Error() == nil {
			t.Errorf("%s was admitted", name)
		}
	}
	for _, filter := range []string{"#", "+/a/#", "modules/+/inputs/y", "modules/b/inputs/y", "modules/a/#", "modules/a/outputs/x", "modules/a/inputs/y/z", "modules/b/twin/desired", "$SYS/#", "$share/g/modules/a/inputs/y", "modules/a/twin/reported", "modules/a/inputs/score"} {
		a := d.module("a")
		token := a.Subscribe(filter, 1, nil)
		token.WaitTimeout(30 * time.Second)
		for _, granted := range token.(*paho.SubscribeToken).Result() { // the library strips some filters
			if granted < 0x80 {
				t.Errorf("a was let subscribe to %s", filter)
			}
		}
		a.Disconnect(0)
	}
	for _, topic := range []string{"modules/b/outputs/x", "modules/b/inputs/y", "modules/a/inputs/y", "modules/a/outputs/x/y", "modules/a/outputs/", "modules/a/twin/desired", "modules/b/twin/reported", "x", "at1/u/0/d/ctl"} {
		a := d.module("a")
		ended := make(chan struct{})
		a.Publish(topic, 1, false, "x")
		go func() {
			for a.IsConnectionOpen() {
				time.Sleep(time.Millisecond)
			}
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Errorf("a was let publish to %s", topic)
		}
	}
	a := d.module("a")
	a.Publish("modules/a/outputs/x", 1, false, make([]byte, wire.MaxMessagePayload+1))
	d.eventually("the connection of who sends too much ended", func() bool { return !a.IsConnectionOpen() })
	if n := len(d.router.Status().Queues); n > 1 || d.queue("a", "b").Taken != 0 {
		t.Errorf("something was taken: %+v", d.router.Status())
	}
	for _, m := range d.router.Status().Modules {
		if m.Name == "a" && (m.Refused < 20 || m.LastRefusal == "") {
			t.Errorf("%+v", m)
		}
	}
	// A password that is changed ends the connections that have the old one.
	a, b := d.module("a"), d.module("b", "inputs/y")
	d.table.Modules[0].Password = hash("another")
	d.apply()
	d.eventually("the connection ended", func() bool { return !a.IsConnectionOpen() })
	if !b.IsConnectionOpen() {
		t.Error("another module lost its connection too")
	}
}

func TestAWillIsPutOut(t *testing.T) {
	t.Parallel()
	d := newDevice(t, aToB)
	b := d.module("b", "inputs/y")
	conn := &closer{}
	o := d.options("a", "a").SetWill("modules/a/outputs/x", "gone", 1, false)
	o.SetCustomOpenConnectionFn(conn.open)
	a := paho.NewClient(o)
	if token := a.Connect(); !token.WaitTimeout(30*time.Second) || token.Error() != nil {
		t.Fatal(token.Error())
	}
	conn.close()
	b.expect("modules/b/inputs/y", "gone")
}
