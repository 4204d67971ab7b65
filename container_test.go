package atelier_test

import (
	"errors"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func TestContainerSettings(t *testing.T) {
	t.Parallel()
	good := atelier.ContainerSettings{
		Entrypoint: []string{"/app"}, Args: []string{"-v"}, Env: []string{"A=b=c", "EMPTY="}, Port: 8080, Network: atelier.NetworkHost,
		Probe: &atelier.ContainerProbe{Kind: atelier.ProbeHTTP, Path: "/healthz?deep=1"}, Devices: []string{"/dev/dri"},
		Mounts: []atelier.ContainerMount{{Source: "/data", Target: "/data", Writable: true}}, Processes: 10,
	}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for field, bad := range map[string]func(*atelier.ContainerSettings){
		"env":       func(s *atelier.ContainerSettings) { s.Env = []string{"=x"} },
		"args":      func(s *atelier.ContainerSettings) { s.Args = []string{"a\x00b"} },
		"devices":   func(s *atelier.ContainerSettings) { s.Devices = []string{"/dev/../etc/shadow"} },
		"mounts":    func(s *atelier.ContainerSettings) { s.Mounts[0].Source = "data" },
		"port":      func(s *atelier.ContainerSettings) { s.Port = 65536 },
		"network":   func(s *atelier.ContainerSettings) { s.Network = "bridge" },
		"processes": func(s *atelier.ContainerSettings) { s.Processes = -1 },
		"probe": func(s *atelier.ContainerSettings) {
			s.Probe = &atelier.ContainerProbe{Kind: atelier.ProbeHTTP, Path: "x y"}
		},
	} {
		s := good
		s.Mounts = append([]atelier.ContainerMount(nil), good.Mounts...)
		bad(&s)
		var err *atelier.Error
		if !errors.As(s.Check(), &err) || err.Code != atelier.Invalid || err.Field != "container."+field {
			t.Errorf("%s: %+v", field, err)
		}
	}
	none := atelier.ContainerSettings{Probe: &atelier.ContainerProbe{Kind: atelier.ProbeTCP}}
	if err := none.Check(); err == nil || !strings.Contains(err.Error(), "needs a port") {
		t.Errorf("a probe of no port: %v", err)
	}
	for _, target := range []string{"/", "/a:b", "relative", "/a/../b"} {
		s := atelier.ContainerSettings{Mounts: []atelier.ContainerMount{{Source: "/data", Target: target}}}
		if s.Check() == nil {
			t.Errorf("a mount on %q is taken", target)
		}
	}
}
