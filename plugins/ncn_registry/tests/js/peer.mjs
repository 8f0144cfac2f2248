// A js-libp2p peer that does what lines of JSON on its standard input say: `node --import ./polyfill.mjs peer.mjs`.
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { check, Owner } from './records.mjs'

const sequence = (key, value) => {
  try {
    return check(key, value)
  } catch {
    return -1
  }
}

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ping: ping({ maxInboundStreams: 8, maxOutboundStreams: 8 }),
    pubsub: gossipsub({ allowPublishToZeroTopicPeers: true }),
    dht: kadDHT({
      protocol: '/ncn/kad/1.0.0',
      clientMode: false,
      peerInfoMapper: passthroughMapper,
      allowQueryWithZeroPeers: true,
      validators: { ncn: async (key, value) => { check(key, value) } },
      selectors: {
        ncn: (key, records) => records.reduce((best, record, index) =>
          sequence(key, record) >= sequence(key, records[best]) ? index : best, 0)
      }
    })
  }
})

const heard = []
const owner = new Owner()
node.services.pubsub.addEventListener('message', ({ detail }) => heard.push(Buffer.from(detail.data).toString('hex')))

const orders = {
  connect: async ({ address }) => { await node.dial(multiaddr(address)) },
  peers: async () => node.getPeers().map(String),
  get: async ({ key }) => {
    const name = new TextEncoder().encode(`/${key}`)
    const values = []
    for await (const event of node.services.dht.get(name)) {
      if (event.name === 'VALUE' && sequence(name, event.value) >= 0) {
        values.push(event.value)
      }
    }
    values.sort((a, b) => sequence(name, b) - sequence(name, a))
    return values.length > 0 ? Buffer.from(values[0]).toString('hex') : null
  },
  write: async ({ sequence, body }) => {
    const value = owner.record(sequence, body)
    let replicas = 0
    for await (const event of node.services.dht.put(new TextEncoder().encode(`/${owner.key}`), value)) {
      replicas += event.name === 'PEER_RESPONSE' && event.messageName === 'PUT_VALUE' ? 1 : 0
    }
    return { key: owner.key, replicas }
  },
  subscribe: async ({ topic }) => { node.services.pubsub.subscribe(topic) },
  publish: async ({ topic, data }) => { await node.services.pubsub.publish(topic, Buffer.from(data, 'hex')) },
  heard: async () => heard.splice(0)
}

console.log(JSON.stringify({ peer_id: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) }))
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line)
  try {
    console.log(JSON.stringify({ answer: await orders[order.do](order) ?? null }))
  } catch (error) {
    console.log(JSON.stringify({ error: `${error.name}: ${error.message}` }))
  }
}
await node.stop()
