package sandbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// channel is the stream between the two halves: frames of four bytes of length and JSON. A descriptor may travel with
// a frame. Nothing hostile is ever on the other end: it closes before the program begins.
type channel struct{ fd int }

// maxFrame bounds what a confused peer can make us allocate.
const maxFrame = 16 << 20

// spec is what the child must do: everything looked up, nothing left to decide.
type spec struct {
	Path       string
	Args, Env  []string
	Dir        string
	UID, GID   int
	Supervisor int      // its process id, as the child sees it
	Groups     []uint32 // process groups that the program must not join
	Rules      []rule
	Denied     []string
	Ports      []uint16 // to listen on
	Connect    []uint16 // to connect to, with network "ports"
	Sockets    []string // unix sockets to connect to
	Unix       bool     // listens on a unix socket
	UDP        bool
	Network    string
	Limits     Limits
	Accept     []string
	Landlock   int  // the ABI
	Filter     bool // install the filter
	Notify     bool // with notification
	Custody    custody
	Trials     trials // what the self-test must not, or must, get through to
	Plan       []Protection
	Trial      bool // report and end
	Learn      bool // note what is opened, and let it pass
	Watch      bool // look at what is executed, or opened for writing

	needs       []rule   // in the supervisor, with Learn: what the profile need not say
	descriptors *os.File // in the child: its /proc/self/fd, opened before the walls
}

// report is what the child says, in this order: that it has dropped, the listener (or why there is none), the
// protections, and, only if it cannot go on, an error. The end of the stream after the protections means that the program has begun.
type report struct {
	Dropped     bool         `json:",omitempty"` // it is what the program will be, but for the walls
	Listener    bool         `json:",omitempty"`
	NoListener  string       `json:",omitempty"`
	Protections []Protection `json:",omitempty"`
	Error       string       `json:",omitempty"`
	Missing     bool         `json:",omitempty"` // Error is that the program does not exist
}

// send writes one frame, and gives the peer a copy of descriptor fd unless it is negative.
func (c channel) send(v any, fd int) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	frame := append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)
	if fd >= 0 {
		// With the first byte; only a thread that has no filter sends descriptors.
		n, err := unix.SendmsgN(c.fd, frame[:1], unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
		if err != nil {
			return err
		}
		frame = frame[n:]
	}
	for len(frame) > 0 {
		n, err := sendBytes(c.fd, frame)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		frame = frame[n:]
	}
	return nil
}

// sendBytes is send(2): a filter may refuse sendmsg(2), and write(2) would end us if nobody reads.
func sendBytes(fd int, p []byte) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// receive reads one frame into v; fd is -1 unless a descriptor came with it. At the end of the stream it returns io.EOF.
func (c channel) receive(v any) (fd int, err error) {
	fd = -1
	var size [4]byte
	if err := c.readFull(size[:], &fd); err != nil {
		return fd, err
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n > maxFrame {
		return fd, fmt.Errorf("a frame of %d bytes", n)
	}
	body := make([]byte, n)
	if err := c.readFull(body, &fd); err != nil {
		return fd, err
	}
	return fd, json.Unmarshal(body, v)
}

func (c channel) readFull(p []byte, fd *int) error {
	for done := 0; done < len(p); {
		control := make([]byte, unix.CmsgSpace(4))
		n, cn, _, _, err := unix.Recvmsg(c.fd, p[done:], control, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.EOF
		}
		if messages, err := unix.ParseSocketControlMessage(control[:cn]); err == nil {
			for i := range messages {
				if fds, err := unix.ParseUnixRights(&messages[i]); err == nil && len(fds) == 1 {
					*fd = fds[0]
				}
			}
		}
		done += n
	}
	return nil
}

// shape is what the filter's table depends on.
func (s *spec) shape() shape {
	level := s.Network
	if level == networkBroker && !s.Notify {
		level = networkPorts
	}
	return shape{level: level, notify: s.Notify, custody: s.Custody, udp: s.UDP, unix: s.Unix, groups: s.Groups, learn: s.Learn, watch: s.Watch}
}
