// Package e2e holds the end-to-end tests: sallyport before real services, with
// real tokens, on a real kernel. It has no code but its tests.
//
//   - authserver is an authorization server (npm oidc-provider) whose keys
//     rotate while requests flow.
//   - backends is one NestJS application on four routers, which says what ran:
//     the far side of the differential fuzz.
//   - misfit is a service that misbehaves on demand, and tries to leave its corner.
//   - ../examples/nestjs is the orders service of the demonstration; the tests of
//     the whole product start it with the sallyport binary.
//
// The Node parts are installed by `npm ci` in each folder (make test does so);
// where they are not, the tests skip and say which command is missing, unless CI
// is "true": then they fail.
//
// The tests of replicas start NATS servers, each in a process of its own, which is
// this program once more. SALLYPORT_CHAOS_SEED is in which order they kill parts.
//
// SALLYPORT_FUZZ is how many mutants each router meets under each policy, and
// SALLYPORT_FUZZ_SEED where they begin. -short makes the fuzz and the load small.
//
// What the differential fuzz cannot show: it compares the gate with the routers
// of these NestJS, Express, Fastify and Node versions, on HTTP/1.1.
package e2e
