package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestUnwritten(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]bool{
		"00400000-00800000 r-xp 00001000 08:01 42                         /bin/agent":           true,
		"00800000-00c00000 r--p 00401000 08:01 42                         /bin/agent":           true,
		"00c00000-00c10000 rw-p 00801000 08:01 42                         /bin/agent":           false,
		"00400000-00800000 r-xs 00001000 08:01 42                         /bin/agent":           false,
		"00400000-00800000 r-xp 00001000 08:01 42                         /bin/other":           false,
		"00400000-00800000 r-xp 00001000 08:01 42                         /bin/agent (deleted)": false,
		"00800000-00400000 r-xp 00001000 08:01 42                         /bin/agent":           false,
		"c000000000-c000400000 rw-p 00000000 00:00 0":                                           false,
		"nonsense": false,
	} {
		from, to, ok := unwritten([]byte(line), "/bin/agent")
		if ok != want || ok && to-from != 0x400000 {
			t.Errorf("%q: %x-%x, %v, want %v", line, from, to, ok, want)
		}
	}
}

func TestReleaseProgram(t *testing.T) {
	t.Parallel()
	before := residentFile(t)
	releaseProgram()
	if after := residentFile(t); after >= before {
		t.Errorf("%d kB of files are resident, %d were before", after, before)
	}
}

// residentFile is how much of mapped files is resident, in kB; see proc(5).
func residentFile(t *testing.T) (kB int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "RssFile:")
	if _, err := fmt.Sscan(rest, &kB); err != nil {
		t.Fatal(err)
	}
	return kB
}
