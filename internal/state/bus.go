package state

import (
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
)

// A Bus carries short messages from each replica to all of them, the sender too. It promises nothing: what is sent while the
// servers are away, or somebody is too slow to hear, is lost. Both stores are one.
type Bus interface {
	// Send sends a message of at most 512 KiB on a topic, which is made of a-z. It does not wait for anybody to hear it.
	Send(topic string, message []byte) error
	// Hear has f called with each message of a topic, one at a time, until cancel is called. f must not wait, nor send, and must
	// not keep the message.
	Hear(topic string, f func(message []byte)) (cancel func(), err error)
}

const maxMessage = 512 << 10

func checkMessage(topic string, message []byte) error {
	for _, c := range []byte(topic) {
		if c < 'a' || c > 'z' {
			return fmt.Errorf("%w: a topic is made of a-z", ErrInvalid)
		}
	}
	if topic == "" || len(message) > maxMessage {
		return fmt.Errorf("%w: no topic, or a message of more than %d bytes", ErrInvalid, maxMessage)
	}
	return nil
}

// topics are who hears in one process.
type topics struct {
	sending sync.Mutex // one message at a time
	mu      sync.Mutex
	each    map[string]*subscribers[[]byte]
}

func (t *topics) of(topic string) *subscribers[[]byte] {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.each == nil {
		t.each = map[string]*subscribers[[]byte]{}
	}
	if t.each[topic] == nil {
		t.each[topic] = &subscribers[[]byte]{}
	}
	return t.each[topic]
}

// Send is of Bus: the one replica that there is hears it before Send returns.
func (l *local) Send(topic string, message []byte) error {
	if err := checkMessage(topic, message); err != nil {
		return fmt.Errorf("send a message: %w", err)
	}
	select {
	case <-l.stop:
		return fmt.Errorf("send a message: %w", errClosed)
	default:
	}
	l.topics.sending.Lock()
	defer l.topics.sending.Unlock()
	l.topics.of(topic).call(message)
	return nil
}

// Hear is of Bus.
func (l *local) Hear(topic string, f func([]byte)) (cancel func(), err error) {
	if err := checkMessage(topic, nil); err != nil {
		return nil, fmt.Errorf("hear messages: %w", err)
	}
	return l.topics.of(topic).add(f), nil
}

// Send is of Bus.
func (n *cluster) Send(topic string, message []byte) error {
	if err := checkMessage(topic, message); err != nil {
		return fmt.Errorf("send a message: %w", err)
	}
	if n.conn.IsClosed() {
		return fmt.Errorf("send a message: %w", errClosed)
	}
	if err := n.conn.Publish(n.config.Bucket+"."+topic, message); err != nil {
		return fmt.Errorf("send a message: %w", err)
	}
	return nil
}

// Hear is of Bus.
func (n *cluster) Hear(topic string, f func([]byte)) (cancel func(), err error) {
	if err := checkMessage(topic, nil); err != nil {
		return nil, fmt.Errorf("hear messages: %w", err)
	}
	sub, err := n.conn.Subscribe(n.config.Bucket+"."+topic, func(m *nats.Msg) { f(m.Data) })
	if err != nil {
		return nil, fmt.Errorf("hear messages: %w", err)
	}
	return func() { sub.Unsubscribe() }, nil
}
