package bearer

import (
	"slices"
	"strings"
)

// What a Kubernetes token may be bound to (Issuer.BoundTo).
const (
	boundToPod  = "pod"
	boundToNode = "node"
	boundToAny  = "any"
)

// applyKubernetes fills in what a cluster's tokens are like: without a type, as a rule, and bound to a pod.
func (a *authority) applyKubernetes(check func(ok bool, format string, args ...any)) {
	check(len(a.TokenTypes) == 0, "token types of a kubernetes issuer: its tokens have none")
	a.TokenTypes = []string{"", "jwt"}
	if a.BoundTo == "" {
		a.BoundTo = boundToPod
	}
	check(slices.Contains([]string{boundToPod, boundToNode, boundToAny}, a.BoundTo), "bound to %s is not pod, node or any", brief(a.BoundTo))
}

// judgeKubernetes wants a service account token as the API server mints it (TokenRequest, authentication.k8s.io/v1): who it is
// stands in sub and, in parts, in the object kubernetes.io, and the two must agree; that object says what its life is bound to.
//
// A legacy token, which a controller put into a Secret, has no audience and no end. It is told apart by its claims.
func (a *authority) judgeKubernetes(claims map[string]any) *Error {
	for name := range claims {
		if strings.HasPrefix(name, "kubernetes.io/") {
			return refuse(codeLegacy, "%s is there", brief(name))
		}
	}
	if claims["kubernetes.io"] == nil {
		return refuse(codeAbsent, "no kubernetes.io")
	}
	if claims["iat"] == nil {
		return refuse(codeAbsent, "no iat")
	}
	object, ok := claims["kubernetes.io"].(map[string]any)
	if !ok {
		return refuse(codeClaim, "kubernetes.io is not an object")
	}
	namespace, _ := object["namespace"].(string)
	account, _, ok := readReference(object, "serviceaccount")
	// without a colon in the parts, the subject reads in one way
	if !ok || !isObjectName(namespace) || !isObjectName(account) {
		return refuse(codeClaim, "kubernetes.io has no namespace and service account by name and uid")
	}
	if claims["sub"] != "system:serviceaccount:"+namespace+":"+account {
		return refuse(codeSubject, "sub is not the service account %s in namespace %s", brief(account), brief(namespace))
	}
	pod, hasPod, podOK := readReference(object, "pod")
	node, hasNode, nodeOK := readReference(object, "node")
	if !podOK && hasPod || !nodeOK && hasNode || hasPod && !isObjectName(pod) || hasNode && !isObjectName(node) {
		return refuse(codeClaim, "pod or node of kubernetes.io is not a name and a uid")
	}
	switch {
	case a.BoundTo == boundToPod && !hasPod:
		return refuse(codeUnbound, "no pod in kubernetes.io")
	case a.BoundTo == boundToNode && !hasPod && !hasNode:
		return refuse(codeUnbound, "neither pod nor node in kubernetes.io")
	}
	return nil
}

// readReference reads an object of the cluster by its name and uid. ok is whether it is one, there whether something is.
func readReference(object map[string]any, member string) (name string, there, ok bool) {
	value, there := object[member]
	reference, _ := value.(map[string]any)
	name, _ = reference["name"].(string)
	uid, _ := reference["uid"].(string)
	return name, there, name != "" && uid != "" && len(uid) <= 128 && !strings.ContainsFunc(uid, isControl)
}

// isObjectName reports whether s can name a namespace, service account, pod or node: a DNS subdomain (RFC 1123).
func isObjectName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return true
}
