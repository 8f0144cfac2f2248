// libp2p 3 asks for Node 22; this is all that Node 20 lacks of what it uses here.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((done, failed) => { resolve = done; reject = failed })
  return { promise, resolve, reject }
}
