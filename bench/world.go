package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// world is a hub with its devices, and a client of its REST API.
type world struct {
	root   string // the repository
	dir    string // everything of this part lies below
	out    io.Writer
	hub    *boot.Program
	others []*boot.Program // ended with the part
	peers  []*running      // likewise
	listen string          // the address of the hub's REST API
	mqtt   string          // and of its MQTT listener
	url    string          // of the workspace in the REST API
	token  string
	client *http.Client
}

// device is a device with the agent's own settings but for the paths.
type device struct {
	name    string
	dir     string
	gateway string // address of its endpoints
	agent   *boot.Program
}

// boot starts a hub with further arguments, logs in and makes a workspace.
func (w *world) boot(ctx context.Context, args ...string) error {
	listen, err := boot.FreeAddress()
	if err != nil {
		return err
	}
	if w.mqtt, err = boot.FreeAddress(); err != nil {
		return err
	}
	w.listen = listen
	if err := w.startHub(args...); err != nil {
		return err
	}
	login, err := w.hub.Says(ctx, "atelier login ")
	if err != nil {
		return err
	}
	if _, err := w.hub.Says(ctx, "ready"); err != nil {
		return err
	}
	words := strings.Fields(login)[1:]
	words[1] = "https://" + listen // where another address is advertised, that is for devices
	if err := w.atelier(ctx, words...); err != nil {
		return err
	}
	if err := w.atelier(ctx, "workspace", "create", "bench"); err != nil {
		return err
	}
	_, after, _ := strings.Cut(login, "--token ")
	w.token, _, _ = strings.Cut(after, " ")
	w.url = "https://" + listen + "/v1/workspaces/bench"
	w.client, err = w.restClient()
	return err
}

func (w *world) startHub(args ...string) error {
	w.hub = w.program("atelier-hub", "hub.log", append([]string{"--data", filepath.Join(w.dir, "hub"), "--listen", w.listen, "--mqtt", w.mqtt}, args...)...)
	return w.hub.Start()
}

// restartHub stops the hub and starts it with other further arguments.
func (w *world) restartHub(ctx context.Context, args ...string) error {
	if err := w.hub.Stop(syscall.SIGTERM, 30*time.Second); err != nil {
		return err
	}
	if err := w.startHub(args...); err != nil {
		return err
	}
	_, err := w.hub.Says(ctx, "ready")
	return err
}

// authority is the certificate of the hub's authority, PEM, as the login stored it.
func (w *world) authority() ([]byte, error) {
	b, err := os.ReadFile(w.config())
	if err != nil {
		return nil, err
	}
	const end = "-----END CERTIFICATE-----"
	text := string(b)
	i, j := strings.Index(text, "-----BEGIN"), strings.LastIndex(text, end)
	if i < 0 || j < 0 {
		return nil, errors.New("the login stored no certificate of the hub's authority")
	}
	return []byte(text[i:j+len(end)] + "\n"), nil
}

// restClient trusts the authority that the login stored.
func (w *world) restClient() (*http.Client, error) {
	b, err := w.authority()
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, errors.New("the login stored no certificate of the hub's authority")
	}
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 16},
		Timeout:   time.Minute,
	}, nil
}

func (w *world) config() string { return filepath.Join(w.dir, "atelier.toml") }

// program is one of the built programs with a log below the part's directory.
func (w *world) program(name, log string, args ...string) *boot.Program {
	return &boot.Program{Path: filepath.Join(w.root, "bin", name), Args: args, Log: filepath.Join(w.dir, log)}
}

// atelier runs the command line.
func (w *world) atelier(ctx context.Context, args ...string) error {
	_, err := w.command(ctx, "atelier", args...)
	return err
}

// command runs one of the programs and returns its standard output.
func (w *world) command(ctx context.Context, name string, args ...string) ([]byte, error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(w.root, "bin", name), args...)
	cmd.Env = append(os.Environ(), "ATELIER_CONFIG="+w.config())
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errOut.String())
	}
	return out.Bytes(), nil
}

// rest sends a request to the workspace's part of the REST API and decodes the
// answer into v, where v is not nil.
func (w *world) rest(ctx context.Context, method, path, contentType string, body []byte, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, w.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	if method == http.MethodPatch {
		req.Header.Set("If-Match", "*")
	}
	res, err := w.client.Do(req)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, answer)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(answer, v)
}

// register registers ONNX Runtime, both versions of digits, and silero.
func (w *world) register(ctx context.Context) error {
	version, err := os.ReadFile(filepath.Join(w.root, ".cache/onnxruntime/VERSION"))
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"runtime", "register", "onnxruntime", strings.TrimSpace(string(version)), w.library(), "--needs-glibc", "2.28"},
		{"model", "register", "digits", w.digits(1)},
		{"model", "register", "digits", w.digits(2)},
		{"model", "register", "silero", w.silero()},
	} {
		if err := w.atelier(ctx, append(args, "-q")...); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) library() string {
	return filepath.Join(w.root, ".cache/onnxruntime/libonnxruntime.so")
}
func (w *world) silero() string { return filepath.Join(w.root, ".cache/models/silero-vad.onnx") }
func (w *world) digits(version int) string {
	return filepath.Join(w.root, "examples/digits", fmt.Sprintf("digits-v%d.onnx", version))
}

// join makes a device and starts its agent.
func (w *world) join(ctx context.Context, name string) (*device, error) {
	d, err := w.admit(ctx, name)
	if err != nil {
		return nil, err
	}
	return d, w.start(ctx, d)
}

// admit makes a device that has joined; its agent does not run yet.
func (w *world) admit(ctx context.Context, name string) (*device, error) {
	d := &device{name: name, dir: filepath.Join(w.dir, name)}
	var err error
	if d.gateway, err = boot.FreeAddress(); err != nil {
		return nil, err
	}
	config := filepath.Join(d.dir, "agent.toml")
	settings := fmt.Sprintf("[paths]\nstate = %q\nrun = %q\n\n[gateway]\nlisten = %q\n",
		filepath.Join(d.dir, "state"), filepath.Join(d.dir, "run"), d.gateway)
	if err := errors.Join(os.MkdirAll(d.dir, 0o700), os.WriteFile(config, []byte(settings), 0o600)); err != nil {
		return nil, err
	}
	out, err := w.command(ctx, "atelier", "device", "token", "--label", "name="+name, "-o", "json")
	if err != nil {
		return nil, err
	}
	var token struct{ Command string }
	if err := json.Unmarshal(out, &token); err != nil {
		return nil, err
	}
	join := strings.Fields(token.Command)
	if len(join) < 2 {
		return nil, fmt.Errorf("'atelier device token' gave the command %q", token.Command)
	}
	for i, word := range join {
		if strings.HasPrefix(word, "https://") {
			join[i] = strings.TrimSuffix(w.url, "/v1/workspaces/bench") // see boot
		}
	}
	if _, err := w.command(ctx, "atelier-agent", append(join[1:], "--name", name, "--config", config)...); err != nil {
		return nil, err
	}
	d.agent = w.program("atelier-agent", name+"/agent.log", "run", "--config", config)
	return d, nil
}

// start starts the device's agent and waits until it is connected.
func (w *world) start(ctx context.Context, d *device) error {
	if err := d.agent.Start(); err != nil {
		return err
	}
	return w.until(ctx, d, true)
}

// until waits until the hub says that the device is connected, or is not.
func (w *world) until(ctx context.Context, d *device, connected bool) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		var shown struct{ Connected bool }
		if err := w.rest(ctx, http.MethodGet, "/devices/"+d.name, "", nil, &shown); err != nil {
			return err
		}
		if shown.Connected == connected {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the hub does not say connected=%t of %s; the end of the agent's log:\n%s", connected, d.name, d.agent.Tail(10))
		}
	}
}

// key returns an endpoint's primary key.
func (w *world) key(ctx context.Context, endpoint string) (string, error) {
	var keys struct{ Primary string }
	err := w.rest(ctx, http.MethodGet, "/endpoints/"+endpoint+"/keys", "", nil, &keys)
	return keys.Primary, err
}

// socket returns the Unix socket of the model server behind an endpoint, as the
// gateway's route table names it.
func (d *device) socket(endpoint string) (string, error) {
	b, err := os.ReadFile(filepath.Join(d.dir, "state/gateway/routes.json"))
	if err != nil {
		return "", err
	}
	var table struct {
		Routes []struct {
			Endpoint string
			Backend  struct{ Socket string }
		}
	}
	if err := json.Unmarshal(b, &table); err != nil {
		return "", err
	}
	for _, r := range table.Routes {
		if r.Endpoint == endpoint {
			return r.Backend.Socket, nil
		}
	}
	return "", fmt.Errorf("the route table of %s has no endpoint %s", d.name, endpoint)
}
