package agenttest

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// BeGateway is a gateway that speaks the control protocol, really listens and
// leads no requests. A test's TestMain becomes one when its arguments begin with
// --state, as those of atelier-gateway do. It ends on SIGTERM.
func BeGateway(args []string) error {
	flags := flag.NewFlagSet("gateway", flag.ContinueOnError)
	state, listen, control := flags.String("state", "", ""), flags.String("listen", "", ""), flags.String("control", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(*state, "refuse")); err == nil {
		return fmt.Errorf("it refuses to start")
	}
	status := atelier.GatewayStatus{PID: os.Getpid(), Started: time.Now().UnixMilli()}
	if l, err := net.Listen("tcp", *listen); err != nil {
		status.Error = err.Error()
	} else {
		status.Listen = l.Addr().String()
	}
	if err := os.RemoveAll(*control); err != nil {
		return err
	}
	l, err := net.Listen("unix", *control)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_ = json.NewEncoder(w).Encode(status)
	})
	mux.HandleFunc("PUT /routes", func(w http.ResponseWriter, r *http.Request) {
		var t atelier.RouteTable
		if json.NewDecoder(r.Body).Decode(&t) != nil || t.Device == "" {
			http.Error(w, "no table", http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		status.Sequence = t.Sequence
	})
	mux.HandleFunc("GET /v2/health/ready", func(w http.ResponseWriter, _ *http.Request) {
		if status.Error != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := &http.Server{Handler: mux}
	go func() { <-ctx.Done(); _ = server.Close() }()
	_ = server.Serve(l)
	return nil
}
