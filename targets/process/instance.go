package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/logfile"
	"golang.org/x/sys/unix"
)

// The files of an instance's directory. The target writes spec.json before it
// starts a shim. The shim holds a record lock on the file lock for as long as it
// lives, and is the only writer of status.json meanwhile.
const (
	specFile   = "spec.json"
	statusFile = "status.json"
	lockFile   = "lock"
	shimLog    = "shim.log" // what a shim says when it fails itself
)

// format is the form of spec.json and status.json. Agent and shim may be of
// different versions: a shim lives as long as its module.
const format = 1

// state is what status.json holds: the status, and what tells whether the
// process with that number is still the same one.
type state struct {
	targets.Status
	BootID     string `json:"boot_id"`
	StartTicks uint64 `json:"start_ticks"` // of the process, from /proc/PID/stat
}

// instance is the directory of one instance.
type instance string

func (i instance) path(name string) string { return filepath.Join(string(i), name) }

func (i instance) read(name string, v any) error {
	data, err := durable.ReadFile(durable.OS{}, i.path(name))
	if err != nil {
		return err
	}
	err = durable.Decode(data, i.path(name), format, v)
	if atelier.CodeOf(err) == atelier.Corrupt {
		return atelier.Errorf(atelier.Corrupt, "it is not what was written there: %w", err).
			WithRemedy("Remove the directory; the module is started anew.")
	}
	return err
}

func (i instance) write(name string, v any) error {
	data, err := durable.Encode(format, v)
	if err != nil {
		return err
	}
	return durable.WriteFile(durable.OS{}, i.path(name), data, 0o600)
}

// lock takes the shim's lock for the life of this process. It reports false
// where another shim has it.
func (i instance) lock() (bool, error) {
	f, err := os.OpenFile(i.path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, err
	}
	// The file stays open on purpose: closing it would give the lock back.
	keepOpen = append(keepOpen, f)
	err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return false, nil
	}
	return err == nil, err
}

var keepOpen []*os.File // locked files, so that no finalizer closes them

// holder returns the process id of the living shim, 0 where there is none. The
// kernel answers, so that neither a reused id nor a reboot can deceive it.
func (i instance) holder() (int, error) {
	f, err := os.OpenFile(i.path(lockFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lk); err != nil {
		return 0, err
	}
	if lk.Type == unix.F_UNLCK {
		return 0, nil
	}
	return int(lk.Pid), nil
}

// alive reports whether the process that s tells of still runs.
func (s *state) alive() bool {
	if s.PID == 0 || s.BootID != bootID() {
		return false
	}
	ticks, zombie, err := startTicks(s.PID)
	return err == nil && ticks == s.StartTicks && !zombie
}

// bootID names the present run of the machine; "" where it cannot be read.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// startTicks returns when process pid started, in clock ticks since boot, and
// whether it has ended and only waits to be reaped. See proc(5), fields 3 and 22
// of stat; the second field, the name, may hold anything, also ')'.
func startTicks(pid int) (ticks uint64, zombie bool, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false, err
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, false, atelier.Errorf(atelier.Internal, "/proc/%d/stat has %d fields, at least 22 were expected", pid, len(fields)+2)
	}
	ticks, err = strconv.ParseUint(fields[19], 10, 64)
	return ticks, fields[0] == "Z" || fields[0] == "X", err
}

// settle writes down the end of a process whose shim ended before it: the
// machine was restarted, or the shim was killed, and the kernel killed the
// process with it. Only a target calls it, and only while there is no shim.
func (i instance) settle(s *state, spec *targets.Spec) error {
	if s.alive() { // the kernel's signal is on its way; helpers of the process get none
		_ = syscall.Kill(-s.PID, syscall.SIGKILL)
		for end := time.Now().Add(5 * time.Second); s.alive() && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		if s.alive() {
			return atelier.Errorf(atelier.Unavailable, "process %d of module %s does not end although it was killed", s.PID, s.ID).
				WithRemedy("It hangs in the kernel; restart the machine.")
		}
	}
	exit := &targets.Exit{Time: time.Now().UTC(), Code: -1}
	if s.BootID == bootID() {
		exit.Signal = signalName(syscall.SIGKILL)
	}
	exit.LastLine = logfile.LastLine(spec.Log)
	s.Phase, s.Exit = targets.Exited, exit
	return i.write(statusFile, s)
}

// signalName returns the signal's name as people know it: "killed", "terminated".
func signalName(s syscall.Signal) string { return s.String() }
