// Package postgrestest gives tests databases on a PostgreSQL server of their own.
//
// The server comes from Debian's postgresql package, runs in a temporary directory,
// listens on a Unix socket only, and ends with the test binary, also when that is
// killed. It starts with the first database that a test asks for. Its default
// collation is a natural language's, as on most servers, so that whoever relies
// on the order of bytes finds out. It does not sync its disk: a test of
// durability needs another server.
package postgrestest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience is how long the server may take to start or to stop.
const patience = time.Minute

// start starts the server once.
var start = sync.OnceValues(startServer)

var databases atomic.Int64

// errMissing says that PostgreSQL is not installed.
var errMissing = errors.New("PostgreSQL's server is not installed: there is no /usr/lib/postgresql/*/bin/initdb ('apt-get install postgresql' brings it)")

// running is the server that Main stops; nil for none.
var running *server

// Main runs the tests of m and stops the server after them. A package whose
// tests call Database needs
//
//	func TestMain(m *testing.M) { os.Exit(postgrestest.Main(m)) }
func Main(m *testing.M) int {
	mainRuns = true
	code := m.Run()
	if running != nil {
		if err := running.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "postgrestest:", err)
			return max(code, 1)
		}
	}
	return code
}

// mainRuns is set before any test runs.
var mainRuns bool

// Database returns the address of a fresh, empty database, which goes with the
// server. Where PostgreSQL is not installed the test is skipped, but fails where
// the environment has CI=true.
func Database(t testing.TB) string {
	t.Helper()
	if !mainRuns {
		t.Fatal("postgrestest: TestMain does not call postgrestest.Main")
	}
	s, err := start()
	if errors.Is(err, errMissing) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal("postgrestest: ", err)
	}
	name := fmt.Sprintf("test%d", databases.Add(1))
	conn, err := pgx.Connect(t.Context(), s.address("postgres"))
	if err != nil {
		t.Fatal("postgrestest: ", err)
	}
	_, err = conn.Exec(t.Context(), "CREATE DATABASE "+name)
	if err = errors.Join(err, conn.Close(t.Context())); err != nil {
		t.Fatal("postgrestest: ", err)
	}
	return s.address(name)
}

// server is a running PostgreSQL server.
type server struct {
	dir    string
	cmd    *exec.Cmd
	output bytes.Buffer
	ended  chan error // the end of the process
}

func (s *server) address(database string) string {
	return "postgres:///" + database + "?user=postgres&host=" + s.dir
}

func startServer() (_ *server, err error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "atelier-postgres-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	as, err := credential(dir)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "--pgdata="+data, "--username=postgres", "--auth=trust",
		"--no-sync", "--encoding=UTF8", "--locale=C", "--locale-provider=icu", "--icu-locale=en-US")
	initdb.Dir, initdb.SysProcAttr = dir, &syscall.SysProcAttr{Credential: as}
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	s := &server{dir: dir, ended: make(chan error, 1)}
	s.cmd = exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", dir,
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200", "-c", "shared_buffers=16MB")
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = dir, &s.output, &s.output
	// Should this process be killed, the kernel tells the server to end at once.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Pdeathsig: syscall.SIGQUIT}
	started := make(chan error)
	go func() {
		// "Parent death" is that of the thread, which Go may end with its goroutine.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.ended <- s.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	running = s
	return s, s.await()
}

// await returns when the server takes connections.
func (s *server) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := pgx.Connect(ctx, s.address("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w", err)
		case end := <-s.ended:
			s.ended <- end
			return fmt.Errorf("the server ended: %w\n%s", end, s.output.Bytes())
		}
	}
}

// stop ends the server without waiting for its clients, and removes its files.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGQUIT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended: // with an exit code that only says how it was told to end
	case <-time.After(patience):
		return fmt.Errorf("the server does not end")
	}
	return os.RemoveAll(s.dir)
}

// binaries returns the directory of the newest PostgreSQL's programs.
func binaries() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", errMissing
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })
	return filepath.Dir(newest), nil
}

// version returns the 15 of /usr/lib/postgresql/15/bin/initdb, 0 where there is none.
func version(initdb string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(initdb))))
	if err != nil {
		return 0
	}
	return n
}

// credential returns whom the server runs as, nil for this process's user. It
// refuses to run as root, who therefore hands dir to the user postgres.
func credential(dir string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, os.Chown(dir, int(uid), int(gid))
}
