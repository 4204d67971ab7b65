// Command app is what tests put into container images: an HTTP server on PORT that tells about
// its surroundings, and does what modules should not.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	switch what := strings.Join(os.Args[1:], " "); what {
	case "":
		serve()
	case "deaf": // ignores SIGTERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Fprintln(os.Stdout, "deaf")
		serve()
	case "fork":
		fork()
	case "eat":
		eat()
	case "fill":
		fill()
	case "probe":
		if _, err := os.Stat("/tmp/sick"); err == nil {
			exit(1)
		}
	case "sleep":
		fmt.Fprintln(os.Stdout, "sleeps")
		time.Sleep(time.Hour)
	default:
		fmt.Fprintln(os.Stdout, "there is no", what)
		exit(64)
	}
}

// exit ends the module as tests ask for.
var exit = os.Exit //nolint:forbidigo // tests ask for it, wherever the module is

func serve() {
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat("/tmp/sick"); err == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	http.HandleFunc("/env", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, strings.Join(os.Environ(), "\n")) })
	http.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	http.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(r.URL.Query().Get("file"))
		fmt.Fprint(w, string(b), err)
	})
	http.HandleFunc("/write", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, os.WriteFile(r.URL.Query().Get("file"), []byte("written"), 0o600))
	})
	http.HandleFunc("/dial", func(w http.ResponseWriter, r *http.Request) {
		_, err := net.DialTimeout("tcp", r.URL.Query().Get("to"), time.Second)
		fmt.Fprint(w, err)
	})
	http.HandleFunc("/sick", func(http.ResponseWriter, *http.Request) { _ = os.WriteFile("/tmp/sick", nil, 0o600) })
	http.HandleFunc("/crash", func(http.ResponseWriter, *http.Request) { exit(3) })
	http.HandleFunc("/eat", func(http.ResponseWriter, *http.Request) { eat() })
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "app %s, pid %d\n", version(), os.Getpid())
	})
	address := "127.0.0.1:" + os.Getenv("PORT")
	fmt.Fprintln(os.Stdout, "listens on", address)
	fmt.Fprintln(os.Stdout, http.ListenAndServe(address, nil))
	exit(1)
}

func version() string {
	b, err := os.ReadFile("/version")
	if err != nil {
		return "?"
	}
	return string(b)
}

// fork starts itself without end.
func fork() {
	fmt.Fprintln(os.Stdout, "forks")
	for {
		_ = exec.Command("/proc/self/exe", "fork").Start()
	}
}

func eat() {
	fmt.Fprintln(os.Stdout, "eats")
	for all := [][]byte{}; ; {
		b := make([]byte, 8<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
}

// fill writes as much as it can wherever it can, and to its log.
func fill() {
	junk := strings.Repeat("x", 1<<20)
	told := ""
	for _, dir := range []string{"/", "/tmp", "/run", "/dev/shm", "/etc"} {
		n := 0
		f, err := os.Create(filepath.Join(dir, "junk"))
		for err == nil && n < 1<<14 {
			if _, err = f.WriteString(junk); err == nil {
				n++
			}
		}
		told += fmt.Sprintln("filled", dir, "with", n, "MiB:", err)
	}
	for range 16 {
		fmt.Fprintln(os.Stdout, junk)
	}
	fmt.Fprint(os.Stdout, told)
	time.Sleep(time.Hour)
}
