package e2e

import "testing"

// TestDeviceBehindAWall joins a device that reaches the hub's HTTPS port only: MQTT
// goes over WebSocket there.
func TestDeviceBehindAWall(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--advertise-mqtt", freeAddress(t)) // where nobody listens
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(1))
	d := w.join("one", "site=a")
	w.atelier("deploy", "digits:1", "--to", "site=a")
	w.endpoint("digits").infer(t, d, 1)
}
