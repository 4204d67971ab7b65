package lending

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
)

// The kinds of packets.
const (
	kindHello  = 'h'
	kindLend   = 'l'
	kindRecall = 'r'
	kindBack   = 'b'
)

// maxName bounds the names that become part of each request's id and path.
const maxName = 200

func token(s string) bool { return len(s) <= maxName && http1.IsToken([]byte(s)) }

// frame is one packet; which fields count depends on its kind.
type frame struct {
	kind    byte
	terms   Terms
	slot    uint32
	key     [sha256.Size]byte
	outcome Outcome
	bytes   []byte // belong to the packet
}

func appendHello(b []byte, t *Terms) ([]byte, error) {
	text, err := json.Marshal(t)
	return append(append(b, kindHello), text...), err
}

func appendLend(b []byte, slot uint32, key *[sha256.Size]byte, unread ...[]byte) []byte {
	b = binary.LittleEndian.AppendUint32(append(b, kindLend), slot)
	b = append(b, key[:]...)
	for _, u := range unread {
		b = append(b, u...)
	}
	return b
}

func appendBack(b []byte, slot uint32, outcome Outcome, unread []byte) []byte {
	b = binary.LittleEndian.AppendUint32(append(b, kindBack), slot)
	return append(append(b, byte(outcome)), unread...)
}

// parseFrame reads a packet. Its error has the code Invalid, Unsupported for
// another version.
func parseFrame(b []byte) (f frame, err error) {
	bad := func(what string) (frame, error) {
		return f, atelier.Errorf(atelier.Invalid, "a packet of %d bytes %s", len(b), what)
	}
	if len(b) == 0 {
		return bad("has no kind")
	}
	f.kind, b = b[0], b[1:]
	switch f.kind {
	case kindHello:
		if err := json.Unmarshal(b, &f.terms); err != nil {
			return bad("has malformed terms: " + err.Error())
		}
		return f, f.terms.check()
	case kindRecall:
		return f, nil
	case kindLend, kindBack:
		if len(b) < 4 {
			return bad("has no slot")
		}
		if f.slot, b = binary.LittleEndian.Uint32(b), b[4:]; f.slot >= MaxLoans {
			return bad(fmt.Sprintf("is for slot %d, there are %d", f.slot, MaxLoans))
		}
		if f.kind == kindLend {
			if n := copy(f.key[:], b); n < len(f.key) {
				return bad("has no key")
			}
			b = b[len(f.key):]
		} else {
			if len(b) == 0 || Outcome(b[0]) > Failed {
				return bad("has no outcome that a module can tell")
			}
			f.outcome, b = Outcome(b[0]), b[1:]
		}
		if f.bytes = b; len(b) > MaxRequest {
			return bad("is too large")
		}
		return f, nil
	}
	return bad(fmt.Sprintf("has kind %q, which is not known", f.kind))
}

// send writes one packet, with a descriptor where fd is not negative.
func send(conn *net.UnixConn, b []byte, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return err
	}
	_, _, err := conn.WriteMsgUnix(b, rights, nil)
	return err
}

// receive reads one packet into buffer, with the descriptor that came with it, nil
// for none. A packet with several is refused.
func receive(conn *net.UnixConn, buffer []byte) (f frame, file *os.File, err error) {
	var oob [128]byte
	n, oobn, flags, _, err := conn.ReadMsgUnix(buffer, oob[:])
	if err != nil {
		return f, nil, err
	}
	files, err := descriptors(oob[:oobn])
	if err == nil {
		switch {
		case n == 0 && oobn == 0:
			err = io.EOF
		case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(files) > 1:
			err = atelier.Errorf(atelier.Invalid, "a packet is larger than %d bytes, or has %d descriptors", len(buffer), len(files))
		default:
			f, err = parseFrame(buffer[:n])
		}
	}
	if err == nil && len(files) == 1 != (f.kind == kindHello || f.kind == kindLend) {
		err = atelier.Errorf(atelier.Invalid, "a packet of kind %q has %d descriptors", f.kind, len(files))
	}
	if err != nil {
		for _, file := range files {
			err = errors.Join(err, file.Close())
		}
		return f, nil, err
	}
	if len(files) == 1 {
		file = files[0]
	}
	return f, file, nil
}

// descriptors takes all that came with a packet.
func descriptors(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // something else than descriptors
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "lent"))
		}
	}
	return files, nil
}
