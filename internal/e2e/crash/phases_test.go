//go:build linux

package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
	"github.com/atelier-edge/atelier/internal/boot"
)

// phase is a part of the main job. It may be run again after it was interrupted,
// as its operator would: what was acknowledged is not asked for again, what was
// not is, and may turn out to be there.
type phase struct {
	name  string
	sides string // whose disk works in it
	run   func(*world, context.Context) error
}

var phases = []phase{
	{"start", "hub", (*world).start},
	{"runtime", "hub", (*world).uploadRuntime},
	{"upload", "hub", (*world).upload},
	{"images", "hub", (*world).push},
	{"enrolment", "hub agent", (*world).enrol},
	{"deployment", "hub agent", (*world).deploy},
	{"switch", "hub agent", (*world).switchOver},
	{"telemetry", "hub agent", (*world).measure},
	{"restart", "hub agent", (*world).restart},
}

const workspace = "plant"

// done turns what an interrupted request may have left into success.
func done(err error) error {
	if atelier.CodeOf(err) == atelier.Exists {
		return nil
	}
	return err
}

func (w *world) start(ctx context.Context) error {
	select {
	case <-w.hub.Exited():
		return w.startHub(ctx)
	default:
		return nil
	}
}

func (w *world) uploadRuntime(ctx context.Context) error {
	if w.acked.runtime {
		return nil
	}
	library, version := onnxRuntime()
	f, err := w.uploadFile(ctx, "", filepath.Base(library), func() (io.Reader, error) { return os.Open(library) })
	if err != nil {
		return err
	}
	_, err = w.client.RegisterRuntime(ctx, atelier.Runtime{
		Meta: atelier.Meta{Name: atelier.RuntimeONNX}, Version: version, OS: "linux", Arch: "amd64",
		Files: []atelier.File{f}, Entry: f.Path, NeedsGlibc: "2.28",
	})
	if err = done(err); err == nil {
		w.acked.runtime = true
	}
	return err
}

// uploadFile uploads the content that open opens, twice: once to know its size.
func (w *world) uploadFile(ctx context.Context, ws, name string, open func() (io.Reader, error)) (f atelier.File, err error) {
	r, err := open()
	if err != nil {
		return f, err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return f, err
	}
	up, err := w.client.UploadBlob(ctx, ws, bytes.NewReader(b), int64(len(b)), "")
	if err == nil && up.Digest != atelier.DigestOf(b) {
		err = fmt.Errorf("the hub says that %s has the digest %s", name, up.Digest)
	}
	return atelier.File{Path: name, Digest: up.Digest, Size: up.Size}, err
}

// models are the versions that are registered, in this order: the two that are
// served, one whose upload takes many writes, and one that shares its content.
var models = []struct {
	version string // "model:number"
	digits  int    // which version of the classifier it is
	comment int    // bytes of comment in it
}{{"digits:1", 1, 0}, {"digits:2", 2, 0}, {"large:1", 1, 3 << 20}, {"twin:1", 2, 0}, {"small:1", 2, 1000}, {"small:2", 2, 2000}}

func (w *world) upload(ctx context.Context) error {
	if !w.acked.workspace {
		if _, err := w.client.CreateWorkspace(ctx, workspace, "", ""); done(err) != nil {
			return err
		}
		w.acked.workspace = true
	}
	for _, m := range models {
		if w.acked.versions[m.version] != "" {
			continue
		}
		if err := w.register(ctx, m.version, m.digits, m.comment); err != nil {
			return fmt.Errorf("register %s: %w", m.version, err)
		}
	}
	return nil
}

func (w *world) register(ctx context.Context, version string, digits, comment int) error {
	model, number, _ := strings.Cut(version, ":")
	f, err := w.uploadFile(ctx, workspace, "model.onnx", func() (io.Reader, error) {
		b, err := os.ReadFile(filepath.Join(root, "examples", "digits", fmt.Sprintf("digits-v%d.onnx", digits)))
		return bytes.NewReader(commented(b, comment)), err
	})
	if err != nil {
		return err
	}
	v, err := w.client.Version(ctx, workspace, model, number)
	if atelier.CodeOf(err) == atelier.NotFound { // else it was made, and its answer was lost
		v, err = w.client.RegisterVersion(ctx, workspace, model, client.NewVersion{Files: []atelier.File{f}})
	}
	if err != nil {
		return err
	}
	if fmt.Sprint(v.Number) != number {
		return fmt.Errorf("it got the number %d", v.Number)
	}
	w.acked.versions[version] = f.Digest
	w.acked.registered = append(w.acked.registered, version)
	return nil
}

// commented adds a comment of so many bytes to an ONNX model: field 6,
// doc_string, of the protocol buffer.
func commented(model []byte, bytes int) []byte {
	if bytes == 0 {
		return model
	}
	model = append(model, 6<<3|2)
	for n := bytes; ; n >>= 7 {
		if n < 0x80 {
			model = append(model, byte(n))
			break
		}
		model = append(model, byte(n)|0x80)
	}
	for i := range bytes {
		model = append(model, 'a'+byte(i*i%25))
	}
	return model
}

func (w *world) enrol(ctx context.Context) error {
	for _, d := range []*device{w.one, w.two} {
		if w.acked.device[d.name] != "" {
			continue
		}
		if err := w.join(ctx, d); err != nil {
			return fmt.Errorf("join %s: %w", d.name, err)
		}
	}
	return nil
}

func (w *world) join(ctx context.Context, d *device) error {
	if w.acked.join[d.name] == nil {
		token, err := w.client.CreateJoinToken(ctx, workspace, client.NewJoinToken{Labels: atelier.Labels{"site": d.name}})
		if err != nil {
			return err
		}
		words := strings.Fields(w.login)
		w.acked.join[d.name] = []string{"join", "--hub", words[2], "--fingerprint", words[4], "--token", token.Secret, "--name", d.name, "--config", d.config()}
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "atelier-agent"), w.acked.join[d.name]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Start()
	if err == nil {
		w.joining.Store(cmd.Process)
		err = cmd.Wait()
		w.joining.Store(nil)
	}
	const refused = 4 // exit code; among others where it has joined, which a lost answer may have hidden
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == refused && strings.Contains(out.String(), "has joined") {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out.String())
	}
	w.acked.device[d.name] = "?"
	shown, err := w.client.Device(ctx, workspace, d.name)
	if err == nil {
		w.acked.device[d.name] = shown.ID
	}
	return err
}

// running starts the agents that do not run, and waits until the hub sees them.
func (w *world) running(ctx context.Context) error {
	for _, d := range []*device{w.one, w.two} {
		select {
		case <-d.agent.Exited():
			if err := d.agent.Start(); err != nil {
				return err
			}
		default:
		}
		d.runs = true
	}
	for _, d := range []*device{w.one, w.two} {
		err := boot.Eventually(ctx, patience, func() error {
			shown, err := w.client.Device(ctx, workspace, d.name)
			if err == nil && !shown.Connected {
				err = fmt.Errorf("%s is not connected", d.name)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

const deployment = "digits"

func (w *world) deploy(ctx context.Context) error {
	if err := w.running(ctx); err != nil {
		return err
	}
	if w.acked.deployed < 1 {
		_, err := w.client.CreateDeployment(ctx, workspace, client.DeploymentSpec{
			Name: deployment, Model: "digits", Version: "1", Selector: &atelier.Selector{Labels: atelier.Labels{"site": "one"}},
		})
		if done(err) != nil {
			return err
		}
		w.acked.deployed = 1
	}
	return w.serves(ctx, 1)
}

func (w *world) switchOver(ctx context.Context) error {
	if err := w.running(ctx); err != nil {
		return err
	}
	if w.acked.deployed < 2 {
		if _, err := w.client.UpdateDeployment(ctx, workspace, deployment, client.DeploymentSpec{Model: "digits", Version: "2"}); err != nil {
			return err
		}
		w.acked.deployed = 2
	}
	return w.serves(ctx, 2)
}

// serves waits until device one answers with a version, or a newer one.
func (w *world) serves(ctx context.Context, version int) error {
	if w.acked.key == "" {
		keys, err := w.client.Keys(ctx, workspace, deployment)
		if err != nil {
			return err
		}
		w.acked.key = keys.Primary
	}
	return boot.Eventually(ctx, patience, func() error {
		v, err := w.answers(ctx)
		if err == nil && v < version {
			err = fmt.Errorf("it answers with version %d, expected was %d", v, version)
		}
		return err
	})
}

// answers asks device one's endpoint and returns the version that has answered.
func (w *world) answers(ctx context.Context) (version int, err error) {
	body, err := json.Marshal(map[string]any{"inputs": []any{map[string]any{
		"name": "pixels", "datatype": "FP32", "shape": []int{1, 64}, "data": make([]float32, 64),
	}}})
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+w.one.gateway+"/"+deployment+"/v2/models/digits/infer", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("X-Api-Key", w.acked.key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err
	}
	var v struct {
		Version string `json:"model_version"`
	}
	if err := json.Unmarshal(out, &v); err != nil || res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("the endpoint answers %s: %s (%w)", res.Status, out, err)
	}
	if _, err := fmt.Sscan(v.Version, &version); err != nil {
		return 0, err
	}
	w.acked.served = max(w.acked.served, version)
	return version, nil
}

// measure waits until the hub has shown three more samples of each device.
func (w *world) measure(ctx context.Context) error {
	if err := w.running(ctx); err != nil {
		return err
	}
	return w.newSamples(ctx, 3)
}

// newSamples waits until the hub has shown n more samples of each device than it
// shows now, and remembers all that it has shown.
func (w *world) newSamples(ctx context.Context, n int) error {
	if err := w.look(ctx); err != nil {
		return err
	}
	before := map[string]int{}
	for name, samples := range w.acked.telemetry {
		before[name] = len(samples)
	}
	return boot.Eventually(ctx, patience, func() error {
		if err := w.look(ctx); err != nil {
			return err
		}
		for _, d := range []*device{w.one, w.two} {
			if got := len(w.acked.telemetry[d.name]) - before[d.name]; got < n {
				return fmt.Errorf("the hub shows %d new samples of %s, expected are %d", got, d.name, n)
			}
		}
		return nil
	})
}

// look remembers the samples that the hub shows.
func (w *world) look(ctx context.Context) error {
	shown, err := w.samples(ctx)
	if err != nil {
		return err
	}
	for name, samples := range shown {
		if w.acked.telemetry[name] == nil {
			w.acked.telemetry[name] = map[string]string{}
		}
		maps.Copy(w.acked.telemetry[name], samples)
	}
	return nil
}

// samples asks the hub for the devices' samples: value by time by device.
func (w *world) samples(ctx context.Context) (map[string]map[string]string, error) {
	q, err := w.client.QueryInstant(ctx, workspace, "system_uptime_seconds[1h]", time.Time{})
	if err != nil {
		return nil, err
	}
	var series []struct {
		Metric struct{ Device string }
		Values [][2]json.RawMessage
	}
	if err := json.Unmarshal(q.Result, &series); err != nil {
		return nil, err
	}
	all := map[string]map[string]string{}
	for _, s := range series {
		all[s.Metric.Device] = map[string]string{}
		for _, v := range s.Values {
			all[s.Metric.Device][string(v[0])] = string(v[1])
		}
	}
	return all, nil
}

// restart ends the suffering side as its operator would, and starts it again.
func (w *world) restart(ctx context.Context) error {
	p := w.suffering()
	if err := p.Stop(syscall.SIGTERM, patience); err != nil {
		return err
	}
	if w.side == "hub" {
		if err := w.startHub(ctx); err != nil {
			return err
		}
	}
	if err := w.running(ctx); err != nil {
		return err
	}
	if err := w.serves(ctx, 2); err != nil {
		return err
	}
	return w.newSamples(ctx, 1)
}
