package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/atelier-edge/atelier"

// layer says what the packages below a prefix may import of this project.
type layer struct {
	prefix string   // relative to the module; "" is the root package alone
	may    []string // prefixes; a package may always import what stands below its own layer
	why    string
}

// layers is the table of docs/architecture.md. The longest prefix that fits a
// package decides. Test packages (…test) belong to what they test.
var layers = []layer{
	{"", nil, "the nouns depend on the standard library only, so that everybody can import them"},

	{"internal/archtest", nil, "it looks at the others from outside"},
	{"internal/durable", []string{""}, "files know nothing of what is in them"},
	{"internal/patient", []string{""}, "whoever serves transfers over HTTP shares it"},
	{"internal/wire", []string{""}, "both sides of the wire import it"},
	{"internal/spool", []string{"", "internal/durable", "internal/wire"}, "whoever keeps batches for the hub shares it"},
	{"internal/trust", []string{""}, "trust must not depend on what it protects"},
	{"internal/content", []string{"", "internal/durable"}, "the content protocol knows no MQTT and no hub"},
	{"internal/bundle", []string{"", "internal/trust", "internal/wire"}, "hub and agent share the form of bundles, not how they come to be"},
	{"internal/environment", []string{""}, "builder and agent share the form of environments"},
	{"internal/onnx", []string{""}, "registry, serving and compiler share it"},
	{"internal/mlflow", []string{""}, "registry and serving share it"},
	{"internal/safetensors", []string{""}, "whoever reads models shares it"},
	{"internal/collect", []string{""}, "model server, agent and hub share the form of records"},
	{"internal/otlp", []string{""}, "agent and hub share it"},
	{"internal/broker", []string{"", "internal/wire"}, "the broker carries messages and knows no meaning"},
	{"internal/boot", nil, "it starts programs and knows nothing of them"},
	{"internal/postgrestest", nil, "it starts a database server for tests"},
	{"examples", []string{"internal/boot"}, "examples use Atelier as its users do"},
	{"internal/e2e", []string{"", "internal/boot", "internal/containerdtest", "internal/wire", "internal/trust", "internal/otlp"}, "it boots programs and talks to them from outside, as a device too"},
	{"bench", []string{"internal/boot", "internal/containerdtest", "internal/onnx", "serving/enginetest"}, "benchmarks measure the programs as their users have them"},

	{"internal/containerdtest", []string{""}, "it runs containerd for tests and knows nothing of modules"},

	{"targets", []string{"", "internal/durable"}, "a target runs what it is told and knows neither hub nor agent"},
	{"targets/fpgahost", []string{"", "serving", "fpga"}, "the engine knows what it drives, and neither hub nor agent"},
	{"routing", []string{"", "internal/durable", "internal/spool", "internal/wire"}, "messages of modules are carried without agent and hub"},
	{"serving", []string{"", "internal/mlflow", "internal/onnx", "internal/durable", "internal/collect"}, "the data side of a device works without the control side"},

	{"fpga/program", []string{""}, "the form of programs knows nothing of networks"},
	{"fpga/reference", nil, "it defines the arithmetic, and depends on nothing that could change it"},
	{"fpga/sim", []string{"", "fpga/program"}, "the model of the processor knows programs only"},
	{"fpga/rtl", []string{"", "fpga/program"}, "the processor itself knows programs only"},
	{"fpga/overlay", []string{"", "internal/onnx", "fpga/program", "fpga/reference"}, "the compiler runs without hub, agent and engines"},
	{"fpga/bitstream", []string{""}, "whoever checks bitstreams shares it"},
	{"fpga/artifact", []string{"", "internal/trust", "fpga/program", "fpga/overlay", "fpga/bitstream", "fpga/networktest", "fpga/reference"}, "what is packed knows nothing of devices"},
	{"fpga/board", []string{"", "fpga/program", "fpga/bitstream", "fpga/sim"}, "a simulated device knows nothing of who drives it"},
	{"fpga/driver", []string{"", "fpga/program", "fpga/board", "fpga/networktest", "fpga/bitstream", "fpga/artifact"}, "a driver does what it is told and knows neither packages nor journals"},
	{"fpga/driver/verilator", []string{"fpga/board", "fpga/rtl", "fpga/program", "fpga/bitstream"}, "it puts the processor itself behind a simulated device"},
	{"fpga/kernelsim", []string{"", "fpga/board", "fpga/program"}, "it stands in for a kernel, and knows no drivers"},
	{"fpga/programming", []string{"", "internal/durable", "internal/trust", "fpga/program", "fpga/artifact", "fpga/driver"}, "what is safe does not depend on who asks for it"},
	{"fpga/networktest", []string{"", "fpga/program", "fpga/reference"}, "tests of all parts compare the same networks"},

	{"packaging", []string{"", "internal/environment"}, "what is built knows nothing of who asks for it"},

	{"hub/store", []string{"", "internal/durable"}, "the store knows no kinds and no rules"},
	{"hub/catalog", []string{"", "hub/store"}, "it lists kinds and holds no rules"},
	{"hub/access", []string{"", "hub/store", "hub/catalog"}, "decisions may not depend on what is decided about"},
	{"hub/vault", []string{"", "internal/durable", "hub/store", "hub/catalog"}, "secrets are sealed, not interpreted"},
	{"hub/authority", []string{"", "internal/durable", "internal/trust", "internal/wire", "hub/store", "hub/catalog"}, "certificates and keys know nothing of models"},
	{"hub/registry", []string{"", "internal/durable", "internal/content", "internal/mlflow", "internal/onnx", "internal/environment", "packaging/environment", "hub/store", "hub/catalog", "hub/access"}, "the registry works without a fleet"},
	{"hub/images", []string{"", "internal/content", "internal/durable", "hub/store", "hub/catalog", "hub/access"}, "images lie beside models and know nothing of them"},
	{"hub/packages", []string{"", "internal/content", "internal/durable", "packaging/image", "hub/store", "hub/catalog", "hub/access", "hub/registry", "hub/images"}, "packages are made of what the registry has, and lie among images"},
	{"hub/distribution", []string{"", "internal/content", "internal/durable", "internal/patient", "hub/store", "hub/catalog", "hub/access", "hub/images"}, "container tools are served without the REST API"},
	{"hub/signing", []string{"", "internal/trust", "hub/store", "hub/catalog", "hub/access", "hub/vault", "hub/images", "packaging/sbom"}, "images are signed where they lie, whoever built them"},
	{"hub/enrol", []string{"", "internal/trust", "internal/wire", "hub/store", "hub/catalog", "hub/access", "hub/authority"}, "a device joins before anything is deployed to it"},
	{"hub/telemetry", []string{"", "internal/durable", "internal/otlp", "internal/wire", "hub/store", "hub/catalog", "hub/access"}, "telemetry works without a registry"},
	{"hub/collect", []string{"", "internal/durable", "internal/content", "internal/wire", "internal/collect", "hub/store", "hub/catalog", "hub/access"}, "collected data need neither registry nor fleet"},
	{"hub/messages", []string{"", "internal/durable", "internal/spool", "internal/wire", "hub/store", "hub/catalog"}, "messages of modules need neither registry nor fleet"},
	{"hub/difference", []string{"", "internal"}, "differences are between contents, whoever they are for"},
	{"hub/fleet", []string{"", "internal", "hub/store", "hub/catalog", "hub/access", "hub/authority", "hub/vault"}, "the fleet reads the catalog, not the registry's or the REST API's inside"},
	{"hub/rest", []string{"", "internal", "hub"}, "the REST API stands on top of the hub"},
	{"hub/client", []string{""}, "whoever uses the hub from outside must not link its inside"},

	{"agent", []string{"", "internal/durable", "internal/wire", "internal/trust", "internal/content", "internal/bundle", "internal/environment", "internal/otlp", "internal/collect", "internal/spool", "targets", "agent"}, "an agent is small, and never contains the hub"},

	{"cmd/atelier", []string{"", "hub/client"}, "the command line is a client of the REST API and nothing else"},
	{"cmd/atelier-builder", []string{"", "hub/client", "packaging"}, "the builder is a client of the REST API that builds"},
	{"cmd/atelier-hub", []string{"", "internal", "hub"}, "the hub knows a target kind as a name only"},
	{"cmd/atelier-agent", []string{"", "internal", "agent", "targets"}, "the agent is the control side of a device"},
	{"cmd/atelier-gateway", []string{"", "internal", "serving"}, "the gateway is the data side of a device"},
	{"cmd/atelier-serve", []string{"", "internal", "serving", "targets/fpgahost", "fpga"}, "the model server knows no hub, agent or MQTT"},
	{"cmd/atelier-router", []string{"", "internal", "routing"}, "the router carries messages and knows no hub"},
	{"cmd/atelier-shim", []string{"", "internal", "targets"}, "the shim holds one process and stays tiny"},
	{"cmd/atelier-keep", []string{"", "internal", "targets"}, "it stands beside one container and stays tiny"},
	{"cmd/atelier-driver-containerd", []string{"", "internal", "targets"}, "a driver runs what the agent tells it, and knows neither agent nor hub"},
}

// ban keeps what is heavy or foreign out of a program or a part of the tree.
type ban struct {
	within  string   // packages below this prefix
	imports string   // an import path or a prefix of some
	except  []string // prefixes below within where it is allowed
	deep    bool     // counts what is imported indirectly too
	why     string
}

var bans = []ban{
	{within: "hub", imports: module + "/agent", why: "hub and agent share the wire, not code"},
	{within: "agent", imports: module + "/hub", deep: true, why: "hub and agent share the wire, not code"},
	{within: "cmd/atelier-hub", imports: module + "/packaging/environment/build", deep: true, why: "the hub builds nothing"},
	{within: "fpga/sim", imports: module + "/fpga/reference", deep: true, why: "two opinions on the arithmetic are worth something only when neither was copied"},
	{within: "fpga/reference", imports: module, why: "the definition stands alone"},
	{within: "cmd/atelier-hub", imports: module + "/fpga", deep: true, why: "the hub compiles nothing for FPGAs"},
	{within: "cmd/atelier-hub", imports: module + "/targets", deep: true, why: "the hub runs no modules"},
	{within: "cmd/atelier-hub", imports: module + "/serving", deep: true, why: "the hub serves no models"},
	{within: "agent", imports: "github.com/eclipse/paho.mqtt.golang", except: []string{"agent/link"}, why: "agent/link is the one importer of MQTT on a device"},
	{within: "hub", imports: "github.com/eclipse/paho.mqtt.golang", why: "internal/broker is the one importer of MQTT in the hub"},
	{within: "", imports: "github.com/mochi-mqtt/server", except: []string{"internal/broker", "serving/topics", "routing/mqtt"}, why: "they are the importers of the broker's library, on the hub and on devices"},
	{within: "cmd/atelier-router", imports: "github.com/eclipse/paho.mqtt.golang", deep: true, why: "what goes to the hub goes through the agent's link"},
	{within: "cmd/atelier-agent", imports: module + "/fpga", deep: true, why: "FPGAs are driven by the model server; the agent stays under 10 MB"},
	{within: "cmd/atelier-agent", imports: "google.golang.org/grpc", deep: true, why: "the agent stays under 10 MB"},
	{within: "cmd/atelier-agent", imports: "go.opentelemetry.io/proto", deep: true, why: "the generated OTLP types cost 2 to 6 MB; internal/otlp encodes by hand"},
	{within: "cmd/atelier-agent", imports: "github.com/prometheus", deep: true, why: "the agent stays under 10 MB"},
	{within: "cmd/atelier-agent", imports: "github.com/mochi-mqtt", deep: true, why: "the agent has no broker"},
	{within: "cmd/atelier-agent", imports: "github.com/containerd", deep: true, why: "container clients are programs of their own"},
	{within: "cmd/atelier-agent", imports: module + "/targets/containerd", deep: true, why: "the agent asks the driver"},
	{within: "cmd/atelier-agent", imports: module + "/targets/driver/serve", deep: true, why: "the agent has no HTTP server"},
	{within: "", imports: "github.com/containerd/containerd", except: []string{"targets/containerd"}, why: "targets/containerd is the one importer of containerd's client"},
	{within: "targets/containerd/keep", imports: "github.com/containerd", deep: true, why: "each container pays for what is in it"},
	{within: "cmd/atelier-keep", imports: "net/http", deep: true, why: "each container pays for what is in it"},
	{within: "cmd/atelier-agent", imports: "github.com/ebitengine/purego", deep: true, why: "model engines are programs of their own"},
	{within: "cmd/atelier-gateway", imports: "github.com/eclipse/paho.mqtt.golang", deep: true, why: "the gateway answers while everything else is away"},
	{within: "cmd/atelier-gateway", imports: "google.golang.org/grpc", deep: true, why: "serving/grpc is all that is needed, for 6 MB less"},
	{within: "cmd/atelier-serve", imports: "google.golang.org/grpc", deep: true, why: "serving/grpc is all that is needed, for 6 MB less"},
	{within: "cmd/atelier-serve", imports: "github.com/eclipse/paho.mqtt.golang", deep: true, why: "the model server knows no MQTT"},
}

type pkg struct {
	ImportPath                               string
	Imports, TestImports, XTestImports, Deps []string
}

func (p pkg) path() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports,Deps", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list told of %d packages only", len(all))
	}
	return all
}

// below reports whether path is prefix or stands below it; the root's prefix ""
// is the root package alone.
func below(path, prefix string) bool {
	if prefix == "" {
		return path == ""
	}
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

func layerOf(path string) (layer, bool) {
	best, found := layer{}, false
	for _, l := range layers {
		if below(path, l.prefix) && (!found || len(l.prefix) > len(best.prefix)) {
			best, found = l, true
		}
	}
	return best, found
}

func TestImportsFlowOneWay(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		l, ok := layerOf(p.path())
		if !ok {
			t.Errorf("%s belongs to no layer: add it to the table here and in docs/architecture.md", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if imp != module && !strings.HasPrefix(imp, module+"/") {
				continue
			}
			to := strings.TrimPrefix(strings.TrimPrefix(imp, module), "/")
			if below(to, l.prefix) && l.prefix != "" {
				continue
			}
			allowed := false
			for _, may := range l.may {
				allowed = allowed || below(to, may)
			}
			if !allowed {
				t.Errorf("%s imports %s, which its layer may not: %s", p.path(), to, l.why)
			}
		}
	}
}

func TestBans(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, b := range bans {
			if b.within != "" && !below(p.path(), b.within) || slices.ContainsFunc(b.except, func(prefix string) bool { return below(p.path(), prefix) }) {
				continue
			}
			imports := p.Imports
			if b.deep {
				imports = p.Deps
			}
			for _, imp := range imports {
				if imp == b.imports || strings.HasPrefix(imp, b.imports+"/") {
					t.Errorf("%s imports %s: %s", p.path(), imp, b.why)
				}
			}
		}
	}
}

func TestNamesSaySomething(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for seg := range strings.SplitSeq(p.path(), "/") {
			switch seg {
			case "util", "utils", "common", "helper", "helpers", "manager", "misc", "shared":
				t.Errorf("%s: the name %q says nothing about what the package is for", p.path(), seg)
			}
		}
	}
}

func TestRootNeedsTheStandardLibraryOnly(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if p.path() != "" {
			continue
		}
		for _, imp := range p.Imports {
			if strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
				t.Errorf("the root package imports %s; it may use the standard library only", imp)
			}
		}
	}
}
