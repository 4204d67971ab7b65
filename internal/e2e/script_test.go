package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the scripts of testdata/script, each against a hub of its
// own with the workspace "plant". Besides testscript's own commands there are
//
//	device NAME [LABEL...]     joins a device and waits until it is connected
//	waitfor REGEXP COMMAND...  runs the command until its output matches
//	save VARIABLE REGEXP       sets a variable to the first group found in stdout
//	code N COMMAND...          runs the command, which must end with the exit code
//
// and the variables $DIGITS1, $DIGITS2 (ONNX files), $RUNTIME, $RUNTIME_VERSION,
// $PYTHON (the version that environments can have here), $HUB (address), $LOGIN
// (arguments of the hub's login command).
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			// testscript hands the *testing.T through, wrapped.
			tb, ok := env.T().(testing.TB)
			if !ok {
				return fmt.Errorf("%T is no testing.TB", env.T())
			}
			w := newWorld(tb)
			w.atelier("workspace", "create", "plant")
			library, version := onnxRuntime(tb)
			env.Values[worldKey{}] = w
			for k, v := range map[string]string{
				"PATH":           bin + string(filepath.ListSeparator) + os.Getenv("PATH"),
				"ATELIER_CONFIG": filepath.Join(w.dir, "atelier.toml"),
				"DIGITS1":        digits(1), "DIGITS2": digits(2), "RUNTIME": library, "RUNTIME_VERSION": version, "PYTHON": debianPython(),
				"HUB": "https://" + w.listen, "LOGIN": strings.TrimPrefix(w.login, "atelier login "), "DATA": filepath.Join(w.dir, "hub"),
			} {
				env.Setenv(k, v)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"device":  cmdDevice,
			"waitfor": cmdWaitFor,
			"save":    cmdSave,
			"code":    cmdCode,
		},
	})
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

func cmdDevice(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: device NAME [LABEL...]")
	}
	d := worldOf(ts).join(args[0], args[1:]...)
	name := strings.ToUpper(strings.ReplaceAll(args[0], "-", "_"))
	ts.Setenv(name+"_GATEWAY", d.gateway)
	ts.Setenv(name+"_CONFIG", d.config)
}

func cmdWaitFor(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: waitfor REGEXP COMMAND...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	deadline := time.Now().Add(60 * time.Second)
	for {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s never said %q; the last time: %v\n%s%s", strings.Join(args[1:], " "), args[0], err, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
		}
		<-time.After(200 * time.Millisecond)
	}
}

func cmdSave(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: save VARIABLE REGEXP")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	found := pattern.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(found) < 2 {
		ts.Fatalf("no %q in\n%s", args[1], ts.ReadFile("stdout"))
	}
	ts.Setenv(args[0], found[1])
}

func cmdCode(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	if got := fmt.Sprint(exitCode(err)); got != args[0] {
		ts.Fatalf("%s: exit code %s, expected was %s", strings.Join(args[1:], " "), got, args[0])
	}
}
