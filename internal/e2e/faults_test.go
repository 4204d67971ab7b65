package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// incident is one thing that goes wrong, and what must be said of it: a reason (or
// the code of an error), a sentence that names the particulars, and a remedy.
// What is empty is not asked for.
type incident struct {
	name   string // as an operator would call it
	where  string // where it is injected
	reason string
	says   []string // parts of the sentence
	remedy string   // a part of the remedy
	root   bool     // to inject it, file systems are mounted
	inject func(t testing.TB)
	told   []place // all the places that must tell it
}

// TestFaults injects faults into the built programs and asks for what is said of
// them. With FAULTS_TABLE=FILE it writes the table of docs/reliability.md.
func TestFaults(t *testing.T) {
	t.Parallel()
	t.Cleanup(func() { checkFaultTable(t) })
	for name, faults := range map[string]func(*testing.T){
		"devices": faultsOfDevices, "joining": faultsOfJoining, "runtimes": faultsOfRuntimes,
		"away": faultsOfAHubThatIsAway, "broker": faultsOfABroker, "disk": faultsOfAFullHub,
		"forged": faultsOfAForger, "restored": faultsOfARestoredHub,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults(t)
		})
	}
}

// word is what a place says of a fault.
type word struct{ Reason, Message, Remedy string }

// place is one that tells of faults. It returns all that it tells now.
type place struct {
	name string
	read func() ([]word, error)
}

// patience is how long a fault may take to be noticed and told.
const patience = 2 * time.Minute

// inject injects faults one after the other, and waits until each is told
// everywhere where it must be.
func inject(t *testing.T, faults []incident) {
	t.Helper()
	for _, f := range faults {
		if f.inject != nil && (!f.root || isRoot(t)) {
			f.inject(t)
		}
	}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			if f.root && !isRoot(t) {
				t.Skip("to inject this, file systems are mounted: run it as root")
			}
			var said word
			for _, p := range f.told {
				eventually(t, patience, func() error {
					words, err := p.read()
					if err != nil {
						return err
					}
					for _, w := range words {
						if f.is(w) {
							if said == (word{}) {
								said = w
							}
							return nil
						}
					}
					return fmt.Errorf("%s does not say %s with %q and the remedy %q, but: %+v", p.name, f.reason, f.says, f.remedy, words)
				})
			}
			noteFault(f, said)
		})
	}
}

// isRoot reports whether the test may mount file systems; in CI it must.
func isRoot(t testing.TB) bool {
	if os.Getuid() != 0 && os.Getenv("CI") == "true" {
		t.Fatal("this test mounts file systems, and CI runs it as root")
	}
	return os.Getuid() == 0
}

func (f *incident) is(w word) bool {
	ok := w.Reason == f.reason && strings.Contains(w.Remedy, f.remedy)
	for _, part := range f.says {
		ok = ok && strings.Contains(w.Message, part)
	}
	return ok
}

// faultTable is what one run was told, for docs/reliability.md.
var faultTable struct {
	mu   sync.Mutex
	rows []string
}

func noteFault(f incident, said word) {
	cell := func(s string) string { return strings.NewReplacer("|", "\\|", "\n", " ").Replace(strings.TrimSpace(s)) }
	faultTable.mu.Lock()
	defer faultTable.mu.Unlock()
	faultTable.rows = append(faultTable.rows, fmt.Sprintf("| %s | %s | %s | %s | %s |", f.name, f.where, said.Reason, cell(said.Message), cell(said.Remedy)))
}

// checkFaultTable compares the faults of this run with docs/reliability.md.
func checkFaultTable(t *testing.T) {
	t.Helper()
	faultTable.mu.Lock()
	defer faultTable.mu.Unlock()
	slices.Sort(faultTable.rows)
	if path := os.Getenv("FAULTS_TABLE"); path != "" {
		write(t, path, "%s\n", strings.Join(faultTable.rows, "\n"))
		return
	}
	docs := read(t, filepath.Join(root, "docs", "reliability.md"))
	for _, row := range faultTable.rows {
		cells := strings.SplitN(row, " | ", 4)
		if head := strings.Join(cells[:3], " | "); !strings.Contains(docs, head) {
			t.Errorf("docs/reliability.md has no row %q; run the test with FAULTS_TABLE=FILE and take it from there", head)
		}
	}
}

// why is what the hub says of a device: by the command line as text and as JSON,
// and by REST.
func (w *world) why(device, subject string) place {
	return place{"atelier why " + device, func() ([]word, error) {
		var answer struct {
			Findings []struct {
				Subject string
				Why     word
			}
		}
		w.asked(&answer, "why", device)
		text := w.atelier("why", device)
		var rest struct {
			Findings json.RawMessage
		}
		if err := w.get("/devices/"+device+"/why", &rest); err != nil {
			return nil, err
		}
		var words []word
		for _, f := range answer.Findings {
			if f.Subject != subject {
				continue
			}
			for place, missing := range map[string]bool{
				"as text": !strings.Contains(text, fmt.Sprintf("  %s: %s\n", subject, f.Why.Reason)) || !strings.Contains(text, "→ "+f.Why.Remedy),
				"by REST": !strings.Contains(string(rest.Findings), fmt.Sprintf(`"reason":%q`, f.Why.Reason)),
			} {
				if missing {
					return nil, fmt.Errorf("as JSON it is %+v, which is missing %s:\n%s\n%s", f.Why, place, text, rest.Findings)
				}
			}
			words = append(words, f.Why)
		}
		if len(words) == 0 {
			return nil, fmt.Errorf("nothing about %s in %s", subject, text)
		}
		return words, nil
	}}
}

// status is what atelier-agent status says on the device of a condition, or of a
// module.
func (d *device) status(about string) place {
	return place{"atelier-agent status on " + d.name, func() ([]word, error) {
		var s struct {
			Conditions []struct {
				Type string
				True bool
				Why  word
			}
			Modules []struct {
				Name               string
				Current, Candidate *struct {
					State string
					Why   word
				}
			}
		}
		out, errOut, err := d.runs("status", "-o", "json")
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, errOut)
		}
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return nil, err
		}
		text, errOut, err := d.runs("status")
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, errOut)
		}
		var words []word
		for _, c := range s.Conditions {
			if c.Type == about && !c.True {
				words = append(words, c.Why)
				if !strings.Contains(text, c.Why.Reason) || !strings.Contains(text, c.Why.Remedy) {
					return nil, fmt.Errorf("%+v is not in the text: %s", c, text)
				}
			}
		}
		for _, m := range s.Modules {
			if m.Name == about && m.Candidate != nil {
				words = append(words, m.Candidate.Why)
			}
			if m.Name == about && m.Current != nil {
				words = append(words, m.Current.Why)
			}
		}
		return words, nil
	}}
}

// runs runs atelier-agent with the device's configuration.
func (d *device) runs(command string, args ...string) (out, errOut string, err error) {
	return run(d.t.Context(), nil, filepath.Join(bin, "atelier-agent"), append([]string{command, "--config", d.config}, args...)...)
}

// log is what a program's log says, by its lines with a why or an error.
func (p program) log() place {
	return place{"the log of " + p.Name(), func() ([]word, error) {
		var words []word
		for line := range strings.SplitSeq(p.Output(), "\n") {
			if w, ok := logged(line); ok {
				words = append(words, w)
			}
		}
		return words[max(0, len(words)-40):], nil
	}}
}

var attribute = regexp.MustCompile(`(?:why|error)\.(reason|code|message|remedy)=("(?:[^"\\]|\\.)*"|\S+)`)

// logged reads a why or an error out of a line of a log.
func logged(line string) (w word, ok bool) {
	for _, m := range attribute.FindAllStringSubmatch(line, -1) {
		value := m[2]
		if strings.HasPrefix(value, `"`) {
			if json.Unmarshal([]byte(value), &value) != nil {
				return w, false
			}
		}
		switch m[1] {
		case "reason", "code":
			w.Reason = value
		case "message":
			w.Message = value
		case "remedy":
			w.Remedy = value
		}
		ok = true
	}
	return w, ok
}

// refusalOf is what a command says that fails with an exit code, which stands for
// the code of an error.
func refusalOf(name, code string, exit int, command func() (errOut string, exit int)) place {
	return place{name, func() ([]word, error) {
		errOut, got := command()
		if got != exit {
			return nil, fmt.Errorf("%s ends with exit code %d, expected %d: %s", name, got, exit, errOut)
		}
		message, remedy := split(errOut)
		return []word{{code, message, remedy}}, nil
	}}
}

// split takes what a program prints of an error apart: the sentence, and the
// remedy below it.
func split(errOut string) (message, remedy string) {
	errOut = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(errOut), "Error: "), "atelier-agent: ")
	lines := strings.Split(errOut, "\n")
	last := lines[len(lines)-1]
	if len(lines) > 1 && strings.HasPrefix(last, "  ") {
		return strings.Join(lines[:len(lines)-1], "\n"), strings.TrimSpace(last)
	}
	return strings.Join(lines, "\n"), ""
}

// command is the command line atelier as something that is refused.
func (w *world) command(code string, exit int, args ...string) place {
	return refusalOf("atelier "+args[0], code, exit, func() (string, int) {
		_, errOut, err := run(w.t.Context(), w.env, filepath.Join(bin, "atelier"), args...)
		return errOut, exitCode(err)
	})
}

// command is the command line atelier-agent as something that is refused.
func (d *device) command(code string, exit int, args ...string) place {
	return refusalOf("atelier-agent "+args[0], code, exit, func() (string, int) {
		_, errOut, err := d.runs(args[0], args[1:]...)
		return errOut, exitCode(err)
	})
}

// get asks the hub's REST API about something in the workspace.
func (w *world) get(path string, v any) error {
	pem := read(w.t, w.authority(w.t))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(pem))
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "https://"+w.listen+"/v1/workspaces/plant"+path, nil)
	if err != nil {
		return err
	}
	_, token, _ := strings.Cut(w.login, "--token ")
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(token))
	c := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", res.Status, b)
	}
	return json.Unmarshal(b, v)
}

// problemWords reads problem details (RFC 9457).
func problemWords(b []byte) ([]word, error) {
	var p struct{ Code, Detail, Remedy string }
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("%w: %s", err, b)
	}
	return []word{{p.Code, p.Detail, p.Remedy}}, nil
}
