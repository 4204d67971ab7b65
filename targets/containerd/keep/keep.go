// Package keep is what stands beside and inside each container that atelier-driver-containerd
// runs, as two small processes of the program atelier-keep.
//
// Hold is started by containerd's shim, outside of the container, and lives as long as that
// does. It writes the container's log, and lends it the address of its endpoint: what comes to
// a Unix socket of the device it passes on to the container's port, in the network of the
// container, which has no way out and none in but this.
//
// Init is process 1 of the container: it starts the module, passes signals on to it, reaps
// what it leaves behind, and ends as it does. A module that is process 1 itself would not
// notice the signal that asks it to end.
//
// The package knows neither containerd nor the agent, since each container pays for it.
package keep

// Plan says what Hold does. It is a file of the container's directory.
type Plan struct {
	// Log takes what the container writes, and begins anew at LogLimit bytes.
	Log      string `json:"log"`
	LogLimit int64  `json:"log_limit"`
	// Socket is the Unix socket whose connections go to 127.0.0.1:Port in the network Network.
	// Port is 0 where nothing is passed on. Network is a file that Hold makes stand for a network
	// namespace, before runc looks for it; "" is the device's network. Hold makes it since it is in
	// the mount namespace of containerd, which the driver need not be.
	Socket  string `json:"socket,omitempty"`
	Port    int    `json:"port,omitempty"`
	Network string `json:"network,omitempty"`
}

// PlanFile is the name of the plan's file.
const PlanFile = "keep.json"

// Format is the form of the plan's file.
const Format = 1

// Where a container finds Init, and the named pipe on which Init tells that the module was
// started, or why not.
const (
	ProgramInside = "/dev/atelier-keep"
	StartedInside = "/dev/atelier-started"
)

// What Init says: Started, or Failed and the reason, and the end of the line.
const (
	Started = "started"
	Failed  = "failed: "
)

// MaxWord is the most bytes that Init says.
const MaxWord = 1024

// SignalExit is what a module's end by signal n is told with: the exit code SignalExit+n.
const SignalExit = 128
