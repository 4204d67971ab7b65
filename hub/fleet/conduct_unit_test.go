package fleet

import (
	"testing"
	"time"
)

func TestControlMessagesAreBounded(t *testing.T) {
	t.Parallel()
	var c conduct
	now := time.Unix(0, 0)
	admitted := 0
	for range 10 * controlBurst {
		if c.admit("a", now) {
			admitted++
		}
	}
	if admitted != controlBurst || !c.admit("b", now) {
		t.Errorf("%d of a burst were admitted, or another device was not", admitted)
	}
	if now = now.Add(time.Second); !c.admit("a", now) {
		t.Error("nothing is regained in a second")
	}
}

func TestMisbehaviourPasses(t *testing.T) {
	t.Parallel()
	var c conduct
	now := time.Unix(1000, 0)
	told := 0
	for range 1000 {
		if c.note("a", "x", now) > 0 {
			told++
		}
	}
	if _, bad := c.why("a", now.Add(time.Minute)); !bad || told != 1 {
		t.Errorf("told %d times, shown %v", told, bad)
	}
	if _, bad := c.why("a", now.Add(conductShown+time.Second)); bad {
		t.Error("it is shown for ever")
	}
	for i := range 100 { // one now and then is what a sound device sends
		if c.note("b", "x", now.Add(time.Duration(i)*time.Minute/10)) > 0 {
			t.Fatal("a few messages that cross each other are taken for misbehaviour")
		}
	}
}
