package atelier

import (
	"encoding/json"
	"testing"
	"time"
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWindow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ window, now, opens string }{
		"before":                  {"08:00-12:30", "2026-03-01T07:59:59Z", "2026-03-01T08:00:00Z"},
		"begins":                  {"08:00-12:30", "2026-03-01T08:00:00Z", ""},
		"within":                  {"08:00-12:30", "2026-03-01T12:29:59Z", ""},
		"ends":                    {"08:00-12:30", "2026-03-01T12:30:00Z", "2026-03-02T08:00:00Z"},
		"to midnight":             {"22:00-24:00", "2026-03-01T23:59:00Z", ""},
		"after midnight":          {"22:00-24:00", "2026-03-02T00:00:00Z", "2026-03-02T22:00:00Z"},
		"over midnight, evening":  {"22:00-06:00", "2026-03-01T23:00:00Z", ""},
		"over midnight, morning":  {"22:00-06:00", "2026-03-01T05:59:00Z", ""},
		"over midnight, day":      {"22:00-06:00", "2026-03-01T06:00:00Z", "2026-03-01T22:00:00Z"},
		"another zone":            {"22:00-06:00 Europe/Berlin", "2026-01-15T20:30:00Z", "2026-01-15T21:00:00Z"},
		"in summer":               {"22:00-06:00 Europe/Berlin", "2026-07-15T20:30:00Z", ""},
		"the day of another zone": {"01:00-02:00 Asia/Tokyo", "2026-03-01T10:00:00Z", "2026-03-01T16:00:00Z"},
		"over a change of clocks": {"22:00-23:00 Europe/Berlin", "2026-03-28T22:30:00Z", "2026-03-29T20:00:00Z"},
	} {
		w, err := ParseWindow(c.window)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		now := at(t, c.now)
		want := now
		if c.opens != "" {
			want = at(t, c.opens)
		}
		if got := w.Opens(now); !got.Equal(want) || w.Contains(now) != (c.opens == "") || !w.Contains(want) {
			t.Errorf("%s: at %s, %s opens at %s, expected was %s", name, c.now, w, got.UTC(), want)
		}
	}
}

func TestWindowsThatAreNone(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "22:00", "22-06", "22:00-25:00", "22:00-06:60", "24:00-06:00", "06:00-06:00", "-1:00-06:00",
		"22:00-06:00 Middle/Earth", "22:00-06:00 Local", "22:00-06:00 ../../etc/passwd", "22:00x-06:00", "22:00-06:00-07:00", "+9:00-10:00", "9 :00-10:00", "9:0-10:00"} {
		if w, err := ParseWindow(s); CodeOf(err) != Invalid {
			t.Errorf("%q is read as %+v, %v", s, w, err)
		}
	}
}

// What a newer hub wrote is shown by a program that does not know the zone.
func TestWindowInJSON(t *testing.T) {
	t.Parallel()
	const text = `{"bandwidth_bytes":1000000,"window":"22:00-06:00 Middle/Earth"}`
	var p TransferPolicy
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	if b, err := json.Marshal(p); err != nil || string(b) != text {
		t.Errorf("%s became %s, %v", text, b, err)
	}
}

func TestTransferChange(t *testing.T) {
	t.Parallel()
	n, none, text, no := int64(5), int64(0), "22:00-06:00", ""
	p, err := TransferChange{Bandwidth: &n, Window: &text}.Apply(nil)
	if err != nil || p.Limit() != 5 || p.Window.String() != "22:00-06:00 UTC" {
		t.Fatalf("got %+v, %v", p, err)
	}
	q, err := TransferChange{Bandwidth: &none}.Apply(p)
	if err != nil || q.Limit() != 0 || q.Window == nil || p.Limit() != 5 {
		t.Fatalf("got %+v, %v; it was %+v", q, err, p)
	}
	if q, err = (TransferChange{Window: &no}).Apply(q); err != nil || q != nil || q.Limit() != 0 {
		t.Fatalf("got %+v, %v", q, err)
	}
	bad := int64(-1)
	if _, err := (TransferChange{Bandwidth: &bad}).Apply(nil); CodeOf(err) != Invalid {
		t.Errorf("got %v", err)
	}
}

// FuzzParseWindow: what is read can be written and read again, and says of every
// time when it opens.
func FuzzParseWindow(f *testing.F) {
	for _, s := range []string{"22:00-06:00", "0:00-24:00 Europe/Berlin", "02:00-02:30 America/New_York", "-", "1:1-1:1 x"} {
		f.Add(s, int64(1774746000))
	}
	f.Fuzz(func(t *testing.T, s string, unix int64) {
		w, err := ParseWindow(s)
		if err != nil {
			return
		}
		if again, err := ParseWindow(w.String()); err != nil || again != w {
			t.Fatalf("%q is %+v, written as %q it is %+v, %v", s, w, w, again, err)
		}
		now := time.Unix(unix%(1<<40), 0)
		if opens := w.Opens(now); opens.Before(now) || opens.Sub(now) > 50*time.Hour {
			t.Fatalf("%s opens at %s after %s", w, opens, now)
		}
	})
}
