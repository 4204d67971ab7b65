// Command atelier-hub is the hub: the REST API, the MQTT broker, the model
// registry, the fleet and the telemetry store in one program with one data
// directory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata" // windows of transfers name time zones, also where the system knows none

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/collect"
	"github.com/atelier-edge/atelier/hub/messages"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

const usage = `atelier-hub holds workspaces, their model registry, their devices and telemetry.

usage:
  atelier-hub [flags]                 run the hub; the first start prints how to log in
  atelier-hub admin-token [flags]     make another admin token, while the hub does not run
  atelier-hub broker-files [flags]    write the certificates that another MQTT broker needs
  atelier-hub new-epoch [flags]       after restoring a backup: let devices accept desired states anew
  atelier-hub version

flags:
`

// run runs one command line and returns its exit code: 1 where it failed, 2 for
// wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	command := "run"
	if len(args) > 0 && args[0] == "help" {
		args = append([]string{"-help"}, args[1:]...)
	}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("atelier-hub", flag.ContinueOnError)
	flags.SetOutput(stderr)
	c := config{out: stdout}
	c.register(flags)
	flags.Usage = func() {
		_, _ = fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		_, _ = fmt.Fprintf(stderr, "Error: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	if err := c.check(); err != nil {
		printError(stderr, err)
		return 2
	}
	level := slog.LevelInfo
	if c.debug {
		level = slog.LevelDebug
	}
	c.log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))

	commands := map[string]func(context.Context, config) error{
		"run": serve, "admin-token": adminToken, "broker-files": brokerFiles, "new-epoch": newEpoch,
		"version": func(context.Context, config) error {
			_, err := fmt.Fprintln(stdout, "atelier-hub", version)
			return err
		},
	}
	do, ok := commands[command]
	if !ok {
		_, _ = fmt.Fprintf(stderr, "Error: %q is no command of atelier-hub; see atelier-hub --help\n", command)
		return 2
	}
	if err := do(ctx, c); err != nil {
		printError(stderr, err)
		return 1
	}
	return 0
}

func printError(w io.Writer, err error) {
	_, _ = fmt.Fprintln(w, "Error:", err)
	var e *atelier.Error
	if errors.As(err, &e) && e.Remedy != "" {
		_, _ = fmt.Fprintln(w, "  "+e.Remedy)
	}
}

// config is what the hub was started with.
type config struct {
	data, listen, mqtt, store, broker, brokerOut string
	advertise, advertiseMQTT                     string
	hosts                                        list
	retention, lateness, deviceLife              time.Duration
	keepEvents, keepAudit, keepContent, block    time.Duration
	differences                                  int64 // bytes on disk
	keepData, dataBlock                          time.Duration
	dataLimit                                    int64 // bytes in a workspace
	keepMessages                                 time.Duration
	messageLimit                                 int64 // bytes of a device
	imageLimit                                   int64 // bytes in a workspace, 0 for no bound
	debug                                        bool

	out io.Writer
	log *slog.Logger
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	*l = append(*l, s)
	return nil
}

func (c *config) register(flags *flag.FlagSet) {
	flags.StringVar(&c.data, "data", "/var/lib/atelier-hub", "the hub's one `directory`")
	flags.StringVar(&c.listen, "listen", ":8443", "`address` of the REST API (HTTPS), and of MQTT over WebSocket at /mqtt")
	flags.StringVar(&c.mqtt, "mqtt", ":8883", "`address` of the embedded broker (MQTT over TLS)")
	flags.Var(&c.hosts, "host", "`name` or IP address under which people and devices reach the hub; may be repeated, the first is told to devices (default the machine's name, or the address of --listen)")
	flags.StringVar(&c.advertise, "advertise", "", "`address` HOST:PORT under which people and devices reach --listen, where a forwarded port or a proxy makes it another one")
	flags.StringVar(&c.advertiseMQTT, "advertise-mqtt", "", "`address` HOST:PORT under which devices reach --mqtt, likewise")
	flags.StringVar(&c.store, "store", "", "`URL` of a PostgreSQL database for the metadata, postgres://…; SQLite in the data directory where empty")
	flags.StringVar(&c.broker, "mqtt-broker", "", "`URL` of an MQTT broker to use in place of the embedded one, ssl://HOST:PORT; see docs/brokers.md")
	flags.StringVar(&c.brokerOut, "out", "broker-files", "`directory` that broker-files writes to")
	flags.DurationVar(&c.retention, "retention", 15*24*time.Hour, "how long telemetry is kept")
	flags.DurationVar(&c.lateness, "lateness", 7*24*time.Hour, "how late telemetry may come from devices that were away")
	flags.DurationVar(&c.block, "telemetry-block", 2*time.Hour, "how much time of telemetry is held in memory before it goes into a block on disk; shorter takes less memory")
	flags.DurationVar(&c.keepEvents, "keep-events", 30*24*time.Hour, "how long events are kept; a watch resumes from what is left")
	flags.DurationVar(&c.keepAudit, "keep-audit", 365*24*time.Hour, "how long the audit trail is kept")
	flags.DurationVar(&c.keepContent, "keep-content", 24*time.Hour, "how long uploaded content is kept that no version names")
	flags.DurationVar(&c.deviceLife, "device-certificates", 30*24*time.Hour, "how long a device's certificate is valid; devices renew at two thirds of it")
	flags.Int64Var(&c.differences, "differences-bytes", 4<<30, "how many `bytes` of disk the differences take at most that bring versions to devices which have earlier ones; 0 makes none")
	flags.DurationVar(&c.keepData, "keep-data", collect.DefaultKeep, "how long the data files of recorded requests are kept")
	flags.DurationVar(&c.keepMessages, "keep-messages", messages.DefaultKeep, "how long messages of modules are kept")
	flags.Int64Var(&c.imageLimit, "image-bytes", 0, "how many `bytes` of images a workspace has at most, equal layers counted once; 0 is without bound")
	flags.Int64Var(&c.messageLimit, "message-bytes", messages.DefaultLimit, "how many `bytes` of messages of a device's modules are kept at most; beyond them the oldest go")
	flags.Int64Var(&c.dataLimit, "data-bytes", collect.DefaultLimit, "how many `bytes` of data files a workspace has at most; beyond them the oldest go")
	flags.DurationVar(&c.dataBlock, "data-block", collect.DefaultBlock, "how long recorded requests wait for others before they become a data file")
	flags.BoolVar(&c.debug, "debug", false, "log more")
}

func (c *config) check() error {
	for name, address := range map[string]string{"listen": c.listen, "mqtt": c.mqtt} {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return atelier.Errorf(atelier.Invalid, "--%s %q is no address: %w", name, address, err).
				WithRemedy("Write it as HOST:PORT or :PORT.")
		}
	}
	for name, address := range map[string]string{"advertise": c.advertise, "advertise-mqtt": c.advertiseMQTT} {
		if host, port, err := net.SplitHostPort(address); address != "" && (err != nil || host == "" || port == "") {
			return atelier.Errorf(atelier.Invalid, "--%s %q is no address that devices could connect to", name, address).
				WithRemedy("Write it as HOST:PORT, both as devices must use them.")
		}
	}
	if c.broker != "" && !strings.HasPrefix(c.broker, "ssl://") && !strings.HasPrefix(c.broker, "wss://") {
		return atelier.Errorf(atelier.Invalid, "--mqtt-broker %q does not begin with ssl:// or wss://", c.broker).
			WithRemedy("Devices prove who they are by certificate, so the broker must speak TLS.")
	}
	for name, d := range map[string]time.Duration{"keep-events": c.keepEvents, "keep-audit": c.keepAudit, "keep-content": c.keepContent, "keep-data": c.keepData, "keep-messages": c.keepMessages, "data-block": c.dataBlock} {
		if d < time.Second {
			return atelier.Errorf(atelier.Invalid, "--%s %s is shorter than a second", name, d)
		}
	}
	if c.imageLimit < 0 {
		return atelier.Errorf(atelier.Invalid, "--image-bytes %d is negative", c.imageLimit)
	}
	if c.messageLimit < messages.MinLimit {
		return atelier.Errorf(atelier.Invalid, "--message-bytes is %d, at least %d was expected", c.messageLimit, messages.MinLimit)
	}
	if c.dataLimit < 1 {
		return atelier.Errorf(atelier.Invalid, "--data-bytes %d is not positive", c.dataLimit)
	}
	if c.differences < 0 {
		return atelier.Errorf(atelier.Invalid, "--differences-bytes %d is negative", c.differences)
	}
	if c.block < time.Second {
		return atelier.Errorf(atelier.Invalid, "--telemetry-block %s is shorter than a second", c.block)
	}
	if c.deviceLife < time.Minute {
		return atelier.Errorf(atelier.Invalid, "--device-certificates %s is shorter than a minute", c.deviceLife)
	}
	var err error
	c.data, err = filepath.Abs(c.data)
	return err
}

// host is the name under which devices are told to reach the hub.
func (c *config) host() string {
	if len(c.hosts) > 0 {
		return c.hosts[0]
	}
	if host, _, err := net.SplitHostPort(c.listen); err == nil && host != "" {
		if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
			return host
		}
	}
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "localhost"
}

// names are all names that the hub's certificate must hold.
func (c *config) names() []string {
	names := append(append([]string{}, c.hosts...), c.host())
	for _, address := range []string{c.advertise, c.advertiseMQTT} {
		if host, _, err := net.SplitHostPort(address); err == nil {
			names = append(names, host)
		}
	}
	return names
}

// at returns the address under which devices reach a listener: the advertised
// one where there is one.
func (c *config) at(l net.Addr, advertised string) string {
	if advertised != "" {
		return advertised
	}
	_, port, err := net.SplitHostPort(l.String())
	if err != nil {
		return l.String()
	}
	return net.JoinHostPort(c.host(), port)
}
