package atelier

import (
	"strings"
	"testing"
)

func TestRoomSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	r := Room{Need: 1000, Free: 1200, Reserve: 200}
	if err := r.Err(); err != nil || r.Short() != 0 {
		t.Errorf("what fits exactly: %v, %d short", err, r.Short())
	}
	r.Free = 900
	for _, c := range []struct {
		words, remedy string
		more          func()
	}{
		{"needs 1000 B, 900 B free (200 B of it kept in reserve)", "Free at least 300 B on the device", func() {}},
		{"200 B can be freed by removing version 2 of a, kept for the way back", "remove a deployment", func() { r.GiveUp("a", 2, 200) }},
		{"400 B can be freed by removing version 2 of a and versions 3 and 4 of b", "disk.keep_previous = false", func() {
			r.GiveUp("b", 4, 100)
			r.GiveUp("b", 3, 100)
		}},
		{"(all of it kept in reserve)", "Free at least", func() { r.Reserve = 1000 }},
	} {
		c.more()
		err := r.Err()
		if CodeOf(err) != NoSpace || !strings.Contains(err.Error(), c.words) || !strings.Contains(BecauseOf(ReasonNoSpace, err).Remedy(), c.remedy) {
			t.Errorf("got %v; %s; expected %s; %s", err, BecauseOf(ReasonNoSpace, err).Remedy(), c.words, c.remedy)
		}
	}
}

func TestVersionsOf(t *testing.T) {
	t.Parallel()
	for want, numbers := range map[string][]int{
		"version 3 of m":           {3},
		"versions 3 and 4 of m":    {4, 3, 4},
		"versions 1, 2 and 9 of m": {9, 1, 2},
	} {
		if got := versionsOf("m", numbers); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
